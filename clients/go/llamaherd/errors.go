package llamaherd

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	domain   = "llamaherd.dev"
	pushback = "grpc-retry-pushback-ms"
)

// Kind is the cause of a failed call, by its name in every client. It is an error, for errors.Is: a call that failed with
// Overloaded failed with Unavailable too.
type Kind string

// Error is the kind's name.
func (k Kind) Error() string { return string(k) }

// Every cause; those that stand in broader are of a broader one too.
const (
	InvalidRequest    Kind = "InvalidRequest" // a field is wrong; Violations tells which
	NotFound          Kind = "NotFound"
	UnknownModel      Kind = "UnknownModel"
	UnknownGeneration Kind = "UnknownGeneration" // none of this id, or another caller's, or expired
	UnknownSession    Kind = "UnknownSession"    // no such conversation, or another caller's, or expired
	RequestIDReused   Kind = "RequestIdReused"   // this id stands for another request
	SessionTaken      Kind = "SessionTaken"      // another connection goes on with the conversation
	TurnRunning       Kind = "TurnRunning"       // the conversation is in the middle of a turn
	NotAllowed        Kind = "NotAllowed"        // the key is missing, wrong, or not good for this
	QuotaExceeded     Kind = "QuotaExceeded"     // the caller holds all it may hold; RetryAfter
	Unavailable       Kind = "Unavailable"       // the same call may succeed later; the client has tried, and gave up
	Overloaded        Kind = "Overloaded"        // the model's queue is full; RetryAfter
	Draining          Kind = "Draining"          // this gateway goes away, and there was no other
	NoWorker          Kind = "NoWorker"          // nobody serves the model at the moment
	BrokerDown        Kind = "BrokerDown"        // the service's Redis does not answer
	ReaderStalled     Kind = "ReaderStalled"     // this client read nothing for so long that the gateway ended the stream
	ConnectionBroken  Kind = "ConnectionBroken"  // nobody answered, or the connection broke
	DeadlineExceeded  Kind = "DeadlineExceeded"  // the context's deadline is over
	DeadlineTooShort  Kind = "DeadlineTooShort"  // it would be, before a worker began; nothing was queued
	Cancelled         Kind = "Cancelled"         // the context was cancelled, or the client closed
	PositionAhead     Kind = "PositionAhead"     // the position lies beyond the end of the generation
	DataLoss          Kind = "DataLoss"          // the service no longer has what was delivered; going on would fork the text
	Unimplemented     Kind = "Unimplemented"     // this gateway does not serve that
	InternalError     Kind = "InternalError"
	PoisonJob         Kind = "PoisonJob"        // every worker that ran this job died of it
	GenerationFailed  Kind = "GenerationFailed" // the engine gave this generation up
	OtherError        Kind = "HerdError"        // a status that this client does not know
)

var broader = map[Kind]Kind{
	UnknownModel: NotFound, UnknownGeneration: NotFound, UnknownSession: NotFound,
	Overloaded: Unavailable, Draining: Unavailable, NoWorker: Unavailable, BrokerDown: Unavailable,
	ReaderStalled: Unavailable, ConnectionBroken: Unavailable,
	DeadlineTooShort: DeadlineExceeded,
	PoisonJob:        InternalError, GenerationFailed: InternalError,
}

var kindByReason = map[string]Kind{
	"INVALID_REQUEST":    InvalidRequest,
	"UNKNOWN_MODEL":      UnknownModel,
	"UNKNOWN_GENERATION": UnknownGeneration,
	"UNKNOWN_SESSION":    UnknownSession,
	"SESSION_TAKEN":      SessionTaken,
	"TURN_RUNNING":       TurnRunning,
	"REQUEST_ID_REUSED":  RequestIDReused,
	"QUOTA_EXCEEDED":     QuotaExceeded,
	"UNAVAILABLE":        Unavailable,
	"OVERLOADED":         Overloaded,
	"DRAINING":           Draining,
	"NO_WORKER":          NoWorker,
	"BROKER_DOWN":        BrokerDown,
	"READER_STALLED":     ReaderStalled,
	"DEADLINE_PASSED":    DeadlineExceeded,
	"DEADLINE_TOO_SHORT": DeadlineTooShort,
	"POSITION_AHEAD":     PositionAhead,
	"LOG_BEHIND":         DataLoss,
	"UNREADABLE":         DataLoss,
	"POISON_JOB":         PoisonJob,
	"GENERATION_FAILED":  GenerationFailed,
	"UNIMPLEMENTED":      Unimplemented,
	"INTERNAL":           InternalError,
}

// kindByCode is for statuses with a reason that this client does not know, or with none.
var kindByCode = map[codes.Code]Kind{
	codes.InvalidArgument:   InvalidRequest,
	codes.NotFound:          NotFound,
	codes.AlreadyExists:     RequestIDReused,
	codes.Unauthenticated:   NotAllowed,
	codes.PermissionDenied:  NotAllowed,
	codes.ResourceExhausted: QuotaExceeded,
	codes.Unavailable:       Unavailable,
	codes.DeadlineExceeded:  DeadlineExceeded,
	codes.Canceled:          Cancelled,
	codes.OutOfRange:        PositionAhead,
	codes.DataLoss:          DataLoss,
	codes.Unimplemented:     Unimplemented,
	codes.Internal:          InternalError,
}

// isOfConnection tells what a status means that the service did not make: the transport, or a proxy whose gateway has
// gone, tells a broken connection by each of these.
var isOfConnection = map[codes.Code]bool{
	codes.Unavailable: true, codes.Canceled: true, codes.Internal: true, codes.Unknown: true,
}

// FieldViolation is one field that is wrong: its path in the request (spec.sampling.temperature) and the fact.
type FieldViolation struct {
	Field       string
	Description string
}

// Error is a call that failed. Every error of this package's calls is one.
type Error struct {
	Kind Kind
	Code codes.Code
	Text string
	// Reason is the service's own word for the cause; empty if a proxy or the transport made the status.
	Reason string
	// Metadata is what goes with the reason, such as the number of attempts.
	Metadata   map[string]string
	Violations []FieldViolation
	// RetryAfter is when a retry may succeed; nil if that was not said.
	RetryAfter *time.Duration
	// ForbidsRetry says that the service asks not to be asked again.
	ForbidsRetry bool
	cause        error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %s", code.Code(e.Code), e.Text)
}

// Is tells whether the error is of this Kind, for errors.Is.
func (e *Error) Is(target error) bool {
	kind, ok := target.(Kind)
	return ok && (e.Kind == kind || broader[e.Kind] == kind)
}

// Unwrap is what gRPC or the context said.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus is for status.Code and status.FromError.
func (e *Error) GRPCStatus() *status.Status {
	if said, ok := e.cause.(interface{ GRPCStatus() *status.Status }); ok {
		return said.GRPCStatus()
	}
	return status.New(e.Code, e.Text)
}

// mayRetry tells whether the same call may succeed later.
func (e *Error) mayRetry() bool {
	return e.Is(Unavailable) && !e.ForbidsRetry
}

// isOfGateway tells whether other gateways should be asked first for a while.
func (e *Error) isOfGateway() bool {
	return e.Kind == ConnectionBroken || e.Kind == Draining || e.Kind == BrokerDown
}

// dataLoss says that what came and what was delivered before do not fit together.
func dataLoss(format string, values ...any) *Error {
	return &Error{Kind: DataLoss, Code: codes.DataLoss, Text: fmt.Sprintf(format, values...)}
}

// broken says that the connection ended, and nobody said so.
func broken(text string) *Error {
	return &Error{Kind: ConnectionBroken, Code: codes.Unknown, Text: text}
}

// closed is the error of a call by a client that is closed.
func closed() *Error {
	return &Error{Kind: Cancelled, Code: codes.Canceled, Text: "the client is closed"}
}

// typed is what a call failed with, as an error of ours.
func typed(ctx context.Context, err error, trailer metadata.MD) *Error {
	if ours, ok := err.(*Error); ok {
		return ours
	}
	said := status.Convert(err)
	e := &Error{Code: said.Code(), Text: said.Message(), cause: err}
	e.readPushback(trailer.Get(pushback))
	for _, detail := range said.Details() {
		e.readDetail(detail)
	}
	if e.Reason == "" && ctx.Err() != nil {
		return ended(ctx)
	}
	e.Kind = kindOf(e.Code, e.Reason)
	return e
}

func kindOf(code codes.Code, reason string) Kind {
	if kind, ok := kindByReason[reason]; ok {
		return kind
	}
	if reason == "" && isOfConnection[code] {
		return ConnectionBroken
	}
	if kind, ok := kindByCode[code]; ok {
		return kind
	}
	return OtherError
}

func (e *Error) readDetail(detail any) {
	switch detail := detail.(type) {
	case *errdetails.ErrorInfo:
		if detail.GetDomain() == domain {
			e.Reason, e.Metadata = detail.GetReason(), detail.GetMetadata()
		}
	case *errdetails.BadRequest:
		for _, violation := range detail.GetFieldViolations() {
			e.Violations = append(e.Violations, FieldViolation{violation.GetField(), violation.GetDescription()})
		}
	case *errdetails.RetryInfo:
		delay := detail.GetRetryDelay().AsDuration()
		e.RetryAfter = &delay
	}
}

// readPushback reads the trailer; a negative or unreadable delay forbids the retry (gRFC A6).
func (e *Error) readPushback(values []string) {
	if len(values) == 0 {
		return
	}
	ms, err := strconv.ParseUint(values[0], 10, 31)
	if err != nil {
		e.ForbidsRetry = true
		return
	}
	delay := time.Duration(ms) * time.Millisecond
	e.RetryAfter = &delay
}
