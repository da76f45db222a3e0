// Package llamaherd is the client of a herd: generations and conversations as unbroken streams. When a gateway or a
// connection is lost, a stream goes on at another by itself; every token's position and chain is checked, so that none
// is lost and none comes twice.
package llamaherd

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"google.golang.org/grpc"

	v1 "llamaherd.dev/llamaherd/v1"
)

const (
	defaultPatience = time.Minute
	maxModels       = 1000 // of one page, by the API
)

// Client reaches a herd by its gateways. Goroutines may share it. The context of a call is that of all its attempts: its
// deadline is the deadline that the service is told, and its outgoing metadata goes with each of them.
//
// What a call of Generate, Complete or Say has started ends with its context, with a stream that gives up since the
// deadline is too near for another attempt, and with the client. A deadline alone leaves it running for its resume window
// where the caller may come back: by WithRequestID, or by a ResumeWindowMs in the spec.
type Client struct {
	calls *calls
}

// Option tells how a client behaves.
type Option func(*reach)

// WithTLS speaks TLS: &tls.Config{} trusts the system's authorities.
func WithTLS(config *tls.Config) Option {
	return func(r *reach) { r.tls = config }
}

// WithAPIKey sends the key with every call.
func WithAPIKey(key string) Option {
	return func(r *reach) { r.apiKey = key }
}

// WithPatience bounds how long a call goes on trying while one attempt after the other fails and nothing new comes. The
// default is a minute; with 0 the first failure is told.
func WithPatience(patience time.Duration) Option {
	return func(r *reach) { r.patience = patience }
}

// WithDialOptions adds to the options of every connection, such as an interceptor that hands a trace on.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(r *reach) { r.dialOptions = append(r.dialOptions, options...) }
}

// New makes a client of the gateways at these addresses (HOST:PORT, or dns:///HOST:PORT for a name that stands for
// several), any of which will do. Nothing is awaited: an address where nobody listens is an error of the calls.
func New(addresses []string, options ...Option) (*Client, error) {
	if len(addresses) == 0 {
		return nil, errors.New("llamaherd: a client needs the address of a gateway")
	}
	how := reach{patience: defaultPatience}
	for _, option := range options {
		option(&how)
	}
	calls, err := newCalls(addresses, how)
	if err != nil {
		return nil, err
	}
	return &Client{calls}, nil
}

// Close leaves every stream, whoever reads it, and ends every connection: what was started and still runs ends at the
// service too, and Close returns once that knows, within a few seconds. Whoever waits is told Cancelled.
func (c *Client) Close() error {
	return c.calls.close()
}

// StartOption tells how something is started.
type StartOption func(*start)

type start struct {
	requestID string
	isNamed   bool // by the caller
}

// WithRequestID makes a call idempotent over processes too; without it, an id is made for each call.
func WithRequestID(id string) StartOption {
	return func(s *start) { s.requestID, s.isNamed = id, true }
}

func startOf(options []StartOption) start {
	s := start{requestID: newID()}
	for _, option := range options {
		option(&s)
	}
	return s
}

// mayComeBack tells whether the caller has a way to find what it has started.
func (s start) mayComeBack(spec *v1.GenerationSpec) bool {
	return s.isNamed || spec != nil && spec.ResumeWindowMs != nil
}

// Generate starts a generation and streams it. Nothing is sent before the first Next.
func (c *Client) Generate(ctx context.Context, spec *v1.GenerationSpec, options ...StartOption) *Stream {
	start := startOf(options)
	reading := &reading{}
	request := &v1.GenerateRequest{Spec: spec, RequestId: &start.requestID}
	generation := &generation{client: c, reading: reading, request: request, isFound: start.mayComeBack(spec)}
	return newStream(ctx, c.calls, reading, generation)
}

// Place is where the reading of a generation that another call has started begins.
type Place struct {
	GenerationID string
	FromPosition uint32
	// Chain is that of the token before; the service then proves that nothing forked. Nil if it is not known.
	Chain *uint32
}

// Attach reads a generation that any call has started, running or finished. Leaving it leaves the generation as it is.
func (c *Client) Attach(ctx context.Context, place Place) *Stream {
	reading := &reading{generationID: place.GenerationID, start: place.FromPosition, firstChain: place.Chain}
	return newStream(ctx, c.calls, reading, &generation{client: c, reading: reading})
}

// Complete generates, and returns everything at once.
func (c *Client) Complete(
	ctx context.Context, spec *v1.GenerationSpec, options ...StartOption,
) (*v1.CompleteResponse, error) {
	start := startOf(options)
	request := &v1.CompleteRequest{Spec: spec, RequestId: &start.requestID}
	once := unary(generationStub, v1.GenerationServiceClient.Complete, request)
	if start.mayComeBack(spec) {
		return answer(ctx, c.calls, once)
	}
	return answerOrEnd(ctx, c.calls, once, func(ctx context.Context) error {
		return c.cancelStarted(ctx, spec, start.requestID)
	})
}

// Submit starts a generation and returns its id at once; Attach or Get reads it.
func (c *Client) Submit(ctx context.Context, spec *v1.GenerationSpec, options ...StartOption) (*v1.Accepted, error) {
	return c.submit(ctx, spec, startOf(options).requestID)
}

// Get tells the state of a generation and its tokens so far.
func (c *Client) Get(ctx context.Context, generationID string) (*v1.GetGenerationResponse, error) {
	request := &v1.GetGenerationRequest{GenerationId: generationID}
	return answer(ctx, c.calls, unary(generationStub, v1.GenerationServiceClient.GetGeneration, request))
}

// Cancel ends a generation; the answer says how it really ends.
func (c *Client) Cancel(ctx context.Context, generationID string) (*v1.CancelGenerationResponse, error) {
	request := &v1.CancelGenerationRequest{GenerationId: generationID}
	return answer(ctx, c.calls, unary(generationStub, v1.GenerationServiceClient.CancelGeneration, request))
}

// Models lists what live workers serve, by name; the first 1,000.
func (c *Client) Models(ctx context.Context) ([]*v1.Model, error) {
	request := &v1.ListModelsRequest{PageSize: maxModels}
	response, err := answer(ctx, c.calls, unary(modelStub, v1.ModelServiceClient.ListModels, request))
	return response.GetModels(), err
}

func (c *Client) submit(ctx context.Context, spec *v1.GenerationSpec, id string) (*v1.Accepted, error) {
	request := &v1.SubmitGenerationRequest{Spec: spec, RequestId: &id}
	response, err := answer(ctx, c.calls, unary(generationStub, v1.GenerationServiceClient.SubmitGeneration, request))
	if err == nil && response.GetAccepted() == nil {
		return nil, broken("the answer has no `accepted`")
	}
	return response.GetAccepted(), err
}

// cancelStarted is the farewell to what was started and whose `accepted` was not awaited: its request_id finds it.
func (c *Client) cancelStarted(ctx context.Context, spec *v1.GenerationSpec, id string) error {
	submitting, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	accepted, err := c.submit(submitting, spec, id)
	if err != nil {
		return err
	}
	return c.cancelKnown(ctx, accepted.GetGenerationId())
}

func (c *Client) cancelKnown(ctx context.Context, generationID string) error {
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	_, err := c.Cancel(ctx, generationID)
	return err
}
