package llamaherd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "llamaherd.dev/llamaherd/v1"
)

// script is a GenerationService that plays what a test wrote, for moments that a healthy gateway never shows.
type script struct {
	v1.UnimplementedGenerationServiceServer
	mutex     sync.Mutex
	called    []string
	requestID string                                                          // of what was started
	chat      v1.ChatServiceServer                                            // none without one
	generate  func(num int, stream v1.GenerationService_GenerateServer) error // num Generate calls came before
	complete  func(context.Context) (*v1.CompleteResponse, error)
}

func (s *script) note(name string) (before int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, called := range s.called {
		if called == name {
			before++
		}
	}
	s.called = append(s.called, name)
	return before
}

// soFar is what was called.
func (s *script) soFar() []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return append([]string{}, s.called...)
}

// isOf tells whether it is the same request_id every time.
func (s *script) isOf(id string) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.requestID == "" {
		s.requestID = id
	}
	return s.requestID == id
}

func (s *script) Generate(request *v1.GenerateRequest, stream v1.GenerationService_GenerateServer) error {
	num := s.note("Generate")
	if !s.isOf(request.GetRequestId()) {
		return status.Error(codes.InvalidArgument, "another request_id")
	}
	return s.generate(num, stream)
}

func (s *script) Complete(ctx context.Context, request *v1.CompleteRequest) (*v1.CompleteResponse, error) {
	s.note("Complete")
	s.isOf(request.GetRequestId())
	return s.complete(ctx)
}

func (s *script) SubmitGeneration(
	_ context.Context, request *v1.SubmitGenerationRequest,
) (*v1.SubmitGenerationResponse, error) {
	s.note("SubmitGeneration")
	if !s.isOf(request.GetRequestId()) {
		return nil, status.Error(codes.InvalidArgument, "another request_id")
	}
	return &v1.SubmitGenerationResponse{Accepted: &v1.Accepted{GenerationId: "one"}}, nil
}

func (s *script) CancelGeneration(
	_ context.Context, request *v1.CancelGenerationRequest,
) (*v1.CancelGenerationResponse, error) {
	s.note("CancelGeneration " + request.GetGenerationId())
	return &v1.CancelGenerationResponse{}, nil
}

// serve gives a client of the script; both end with the test.
func serve(t *testing.T, played *script, serverOptions []grpc.ServerOption, options ...Option) *Client {
	t.Helper()
	return clientOf(t, []string{play(t, played, serverOptions...)}, options...)
}

// play gives the address where the script is played until the test ends.
func play(t *testing.T, played *script, options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	v1.RegisterGenerationServiceServer(server, played)
	if played.chat != nil {
		v1.RegisterChatServiceServer(server, played.chat)
	}
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

// clientOf gives a client that ends with the test.
func clientOf(t *testing.T, addresses []string, options ...Option) *Client {
	t.Helper()
	client, err := New(addresses, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// sendAll sends these, and then, if it is long, lasts until the client leaves or its deadline passes, as the service does.
func sendAll(stream v1.GenerationService_GenerateServer, isLong bool, all ...*v1.GenerateResponse) error {
	for _, each := range all {
		if err := stream.Send(each); err != nil {
			return err
		}
	}
	if isLong {
		<-stream.Context().Done()
		return status.FromContextError(stream.Context().Err()).Err()
	}
	return nil
}

func readAll(stream *Stream) (text string) {
	for stream.Next() {
		text += stream.Delta().Text
	}
	return text
}

func TestAnEndWithoutCompletedIsTriedAgain(t *testing.T) {
	played := &script{generate: func(num int, stream v1.GenerationService_GenerateServer) error {
		if num == 0 {
			return sendAll(stream, false, tokens(0, 2))
		}
		return sendAll(stream, false, tokens(0, 3), finished(0), completed(3))
	}}
	stream := serve(t, played, nil).Generate(context.Background(), Text("Once"))
	defer stream.Close()
	if text := readAll(stream); text != "xxxheld back" || stream.Err() != nil {
		t.Errorf("%q, %v", text, stream.Err())
	}
}

func TestTheDeadlineIsThatOfTheContext(t *testing.T) {
	played := &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
		return sendAll(stream, true, tokens(0, 1))
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	stream := serve(t, played, nil).Generate(ctx, Text("Once"))
	readAll(stream)
	if !errors.Is(stream.Err(), DeadlineExceeded) || status.Code(stream.Err()) != codes.DeadlineExceeded {
		t.Error(stream.Err())
	}
}

// refused is a status with details, and when to come back as a trailer.
func refused(ctx context.Context, pushback string, details ...*errdetails.ErrorInfo) error {
	_ = grpc.SetTrailer(ctx, metadata.Pairs("grpc-retry-pushback-ms", pushback))
	said := status.New(codes.Unavailable, "the queue is full")
	for _, detail := range details {
		said, _ = said.WithDetails(detail, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)})
	}
	return said.Err()
}

func TestAnErrorIsOfItsKindAndCarriesTheFacts(t *testing.T) {
	info := &errdetails.ErrorInfo{Domain: domain, Reason: "OVERLOADED", Metadata: map[string]string{"waiting": "7"}}
	played := &script{}
	played.complete = func(ctx context.Context) (*v1.CompleteResponse, error) { return nil, refused(ctx, "1", info) }
	_, err := serve(t, played, nil, WithPatience(0)).Complete(context.Background(), Text("Once"))
	var failure *Error
	if !errors.As(err, &failure) || !errors.Is(err, Overloaded) || !errors.Is(err, Unavailable) || errors.Is(err, NoWorker) {
		t.Fatal(err)
	}
	if *failure.RetryAfter != time.Millisecond || failure.Metadata["waiting"] != "7" || failure.Reason != "OVERLOADED" {
		t.Errorf("%+v", failure)
	}
	if status.Code(err) != codes.Unavailable || err.Error() != "UNAVAILABLE: the queue is full" {
		t.Error(err)
	}
}

func TestWhoIsAskedNotToComeBackDoesNot(t *testing.T) {
	played := &script{}
	played.complete = func(ctx context.Context) (*v1.CompleteResponse, error) { return nil, refused(ctx, "-1") }
	_, err := serve(t, played, nil).Complete(context.Background(), Text("Once"))
	if called := played.soFar(); !errors.Is(err, Unavailable) || len(called) != 1 {
		t.Error(err, called)
	}
}

func TestAReasonGoesBeforeTheCode(t *testing.T) {
	for reason, kind := range map[string]Kind{"": ConnectionBroken, "DRAINING": Draining, "A_NEW_ONE": Unavailable} {
		if got := kindOf(codes.Unavailable, reason); got != kind {
			t.Errorf("%q: %s", reason, got)
		}
	}
	for code, kind := range map[codes.Code]Kind{
		codes.PermissionDenied: NotAllowed, codes.Aborted: OtherError, codes.Internal: ConnectionBroken,
	} {
		if got := kindOf(code, ""); got != kind {
			t.Errorf("%s: %s", code, got)
		}
	}
	if stalled := (&Error{Kind: kindOf(codes.Aborted, "READER_STALLED")}); !stalled.mayRetry() {
		t.Error("a reader that was let go does not go on")
	}
}

func TestAClosedClientMakesNoCall(t *testing.T) {
	client := serve(t, &script{}, nil)
	client.Close()
	if _, err := client.Models(context.Background()); !errors.Is(err, Cancelled) {
		t.Error(err)
	}
	stream := client.Attach(context.Background(), Place{GenerationID: "one"})
	if stream.Next() || !errors.Is(stream.Err(), Cancelled) {
		t.Error(stream.Err())
	}
}

func TestAClientNeedsAnAddress(t *testing.T) {
	if _, err := New(nil); err == nil {
		t.Error("nobody to ask")
	}
}

func TestTLSAndTheKeyGoWithEveryCall(t *testing.T) {
	certificate, authorities := certified(t)
	played := &script{complete: func(ctx context.Context) (*v1.CompleteResponse, error) {
		sent, _ := metadata.FromIncomingContext(ctx)
		said := []string{sent.Get("authorization")[0], sent.Get("traceparent")[0], sent.Get("user-agent")[0]}
		return &v1.CompleteResponse{GenerationId: strings.Join(said, " ")}, nil
	}}
	server := []grpc.ServerOption{grpc.Creds(credentials.NewServerTLSFromCert(&certificate))}
	config := &tls.Config{RootCAs: authorities, ServerName: "herd.example"}
	client := serve(t, played, server, WithTLS(config), WithAPIKey("secret"), WithDialOptions(grpc.WithUserAgent("test")))
	ctx := metadata.AppendToOutgoingContext(context.Background(), "traceparent", "00-1")
	answer, err := client.Complete(ctx, Text("Once"))
	if err != nil || !strings.HasPrefix(answer.GetGenerationId(), "Bearer secret 00-1 test ") {
		t.Errorf("%v, %v", answer, err)
	}
}

// certified is a certificate for herd.example, and who trusts it.
func certified(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"herd.example"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
