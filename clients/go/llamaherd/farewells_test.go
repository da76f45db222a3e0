package llamaherd

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	v1 "llamaherd.dev/llamaherd/v1"
)

// overdue is a context whose deadline passes when its parent is cancelled: when a test says so, on any machine.
type overdue struct{ context.Context }

func (o overdue) Err() error {
	if o.Context.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

// Value hides the parent, whose own error the contexts below would take otherwise.
func (overdue) Value(any) any { return nil }

// withDeadline gives what makes the deadline pass.
func withDeadline() (context.Context, context.CancelFunc) {
	ctx, pass := context.WithCancel(context.Background())
	return overdue{ctx}, pass
}

// long is a generation that is accepted, has one token and goes on for ever.
func long() *script {
	return &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
		return sendAll(stream, true, accepted("one"), tokens(0, 1))
	}}
}

// told compares what was called once everything is said that the client says in the background.
func told(t *testing.T, client *Client, played *script, want ...string) {
	t.Helper()
	client.Close()
	if called := played.soFar(); !reflect.DeepEqual(called, want) {
		t.Errorf("%q, not %q", called, want)
	}
}

func TestTheEndOfTheContextEndsTheGeneration(t *testing.T) {
	for want, withEnd := range map[Kind]func() (context.Context, context.CancelFunc){
		DeadlineExceeded: withDeadline,
		Cancelled:        func() (context.Context, context.CancelFunc) { return context.WithCancel(context.Background()) },
	} {
		for _, isClosed := range []bool{false, true} {
			played := long()
			client := serve(t, played, nil)
			ctx, end := withEnd()
			stream := client.Generate(ctx, Text("Once"))
			if !stream.Next() {
				t.Fatal(stream.Err())
			}
			end()
			if stream.Next() || !errors.Is(stream.Err(), want) || !errors.Is(stream.Err(), ctx.Err()) {
				t.Error(stream.Err())
			}
			if isClosed {
				if err := stream.Close(); err != nil || len(played.soFar()) != 2 {
					t.Errorf("Close waits until the service knows: %v, %v", err, played.soFar())
				}
			}
			told(t, client, played, "Generate", "CancelGeneration one")
		}
	}
}

func TestTheServiceMayNoticeTheDeadlineFirst(t *testing.T) {
	played := &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
		_ = sendAll(stream, false, accepted("one"), tokens(0, 1))
		return status.Error(codes.DeadlineExceeded, "too late")
	}}
	client := serve(t, played, nil)
	stream := client.Generate(context.Background(), Text("Once"))
	if readAll(stream); !errors.Is(stream.Err(), DeadlineExceeded) {
		t.Error(stream.Err())
	}
	told(t, client, played, "Generate", "CancelGeneration one")
}

func TestADeadlineLeavesWhatItsCallerMayComeBackTo(t *testing.T) {
	windowed := Text("Once")
	windowed.ResumeWindowMs = proto.Uint32(90_000)
	for _, each := range []struct {
		spec    *v1.GenerationSpec
		options []StartOption
	}{{Text("Once"), []StartOption{WithRequestID("mine")}}, {windowed, nil}} {
		played := long()
		client := serve(t, played, nil)
		ctx, pass := withDeadline()
		stream := client.Generate(ctx, each.spec, each.options...)
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		pass()
		if stream.Next() || !errors.Is(stream.Err(), DeadlineExceeded) || stream.Close() != nil {
			t.Error(stream.Err())
		}
		told(t, client, played, "Generate")
	}
}

func TestWhatIsLeftBeforeItWasAcceptedIsFoundByItsRequestID(t *testing.T) {
	for _, leave := range []func(*Stream, context.CancelFunc) error{
		func(stream *Stream, _ context.CancelFunc) error { return stream.Close() },
		func(stream *Stream, cancel context.CancelFunc) error { cancel(); stream.Next(); return stream.Close() },
	} {
		played := &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
			return sendAll(stream, true, tokens(0, 1))
		}}
		client := serve(t, played, nil)
		ctx, cancel := context.WithCancel(context.Background())
		stream := client.Generate(ctx, Text("Once"), WithRequestID("mine"))
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		if err := leave(stream, cancel); err != nil {
			t.Error(err)
		}
		told(t, client, played, "Generate", "SubmitGeneration", "CancelGeneration one")
		if played.requestID != "mine" {
			t.Error(played.requestID)
		}
		cancel()
	}
}

func TestAStreamThatFailedOrNeverBeganLeavesNothingToEnd(t *testing.T) {
	played := &script{generate: func(_ int, stream v1.GenerationService_GenerateServer) error {
		return sendAll(stream, false, accepted("one"), tokens(1, 2))
	}}
	client := serve(t, played, nil)
	if err := client.Generate(context.Background(), Text("Once")).Close(); err != nil {
		t.Error(err)
	}
	stream := client.Generate(context.Background(), Text("Once"))
	if stream.Next() || !errors.Is(stream.Err(), DataLoss) || stream.Close() != nil {
		t.Error(stream.Err())
	}
	told(t, client, played, "Generate")
}

func TestAnAnswerThatIsNotWaitedForIsCancelled(t *testing.T) {
	for _, each := range []struct {
		options []StartOption
		want    []string
	}{
		{nil, []string{"Complete", "SubmitGeneration", "CancelGeneration one"}},
		{[]StartOption{WithRequestID("mine")}, []string{"Complete"}},
	} {
		ctx, pass := withDeadline()
		played := &script{complete: func(ctx context.Context) (*v1.CompleteResponse, error) {
			pass()
			<-ctx.Done()
			return nil, status.FromContextError(ctx.Err()).Err()
		}}
		client := serve(t, played, nil)
		if _, err := client.Complete(ctx, Text("Once"), each.options...); !errors.Is(err, DeadlineExceeded) {
			t.Error(err)
		}
		told(t, client, played, each.want...)
	}
}

// talk is a ChatService that begins every turn with one token, and goes on for ever, or asks to come back later.
type talk struct {
	v1.UnimplementedChatServiceServer
	played   *script
	pushback string
}

func (*talk) OpenSession(context.Context, *v1.OpenSessionRequest) (*v1.OpenSessionResponse, error) {
	return &v1.OpenSessionResponse{Ready: &v1.SessionReady{ResumptionHandle: "handle"}}, nil
}

func (c *talk) SendTurn(_ *v1.SendTurnRequest, stream v1.ChatService_SendTurnServer) error {
	c.played.note("SendTurn")
	if err := stream.Send(&v1.SendTurnResponse{Tokens: tokens(0, 1).Tokens}); err != nil {
		return err
	}
	if c.pushback != "" {
		return refused(stream.Context(), c.pushback)
	}
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}

func (c *talk) Interrupt(_ context.Context, request *v1.InterruptRequest) (*v1.InterruptResponse, error) {
	if request.GetSessionHandle() == "handle" && request.GetNumTokensShown() == 1 {
		c.played.note("Interrupt")
	}
	return &v1.InterruptResponse{WasRunning: true}, nil
}

func TestADeadlineInterruptsItsTurn(t *testing.T) {
	for _, each := range []struct {
		options []StartOption
		want    []string
	}{
		{nil, []string{"SendTurn", "Interrupt"}},
		{[]StartOption{WithRequestID("mine")}, []string{"SendTurn"}},
	} {
		played := &script{}
		played.chat = &talk{played: played}
		client := serve(t, played, nil)
		chat, err := client.Chat(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, pass := withDeadline()
		stream := chat.Say(ctx, "Hello", each.options...)
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		pass()
		if stream.Next() || !errors.Is(stream.Err(), DeadlineExceeded) {
			t.Error(stream.Err())
		}
		told(t, client, played, each.want...)
	}
}

func TestAnAttemptThatWouldComeAfterTheDeadlineInterruptsItsTurn(t *testing.T) {
	played := &script{}
	played.chat = &talk{played: played, pushback: "50000"}
	client := serve(t, played, nil)
	chat, err := client.Chat(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	stream := chat.Say(ctx, "Hello")
	if text := readAll(stream); text != "x" || !errors.Is(stream.Err(), Unavailable) {
		t.Errorf("%q, %v", text, stream.Err())
	}
	told(t, client, played, "SendTurn", "Interrupt")
}

func TestTheClientsEndEndsWhatIsRead(t *testing.T) {
	for _, isReading := range []bool{false, true} { // at that moment, in another goroutine
		played := long()
		client := serve(t, played, nil)
		stream := client.Generate(context.Background(), Text("Once"), WithRequestID("mine"))
		if !stream.Next() {
			t.Fatal(stream.Err())
		}
		isThere := make(chan bool, 1)
		read := func() { isThere <- stream.Next() }
		if isReading {
			go read()
		}
		told(t, client, played, "Generate", "CancelGeneration one")
		if !isReading {
			read()
		}
		if <-isThere || !errors.Is(stream.Err(), Cancelled) || stream.Close() != nil {
			t.Error(stream.Err())
		}
	}
}

func TestTheClientsEndDoesNotWaitForTheNextAttempt(t *testing.T) {
	played := &script{}
	called := make(chan struct{})
	played.generate = func(_ int, stream v1.GenerationService_GenerateServer) error {
		close(called)
		return refused(stream.Context(), "3600000")
	}
	client := serve(t, played, nil, WithPatience(2*time.Hour))
	stream := client.Generate(context.Background(), Text("Once"))
	isThere := make(chan bool, 1)
	go func() { isThere <- stream.Next() }()
	<-called
	client.Close()
	if <-isThere || !errors.Is(stream.Err(), Cancelled) {
		t.Error(stream.Err())
	}
}

func TestTheClientsEndEndsWhatIsAwaited(t *testing.T) {
	for _, each := range []struct {
		options []StartOption
		want    []string
	}{
		{nil, []string{"Complete", "SubmitGeneration", "CancelGeneration one"}},
		{[]StartOption{WithRequestID("mine")}, []string{"Complete"}},
	} {
		called := make(chan struct{})
		played := &script{complete: func(ctx context.Context) (*v1.CompleteResponse, error) {
			close(called)
			<-ctx.Done()
			return nil, status.FromContextError(ctx.Err()).Err()
		}}
		client := serve(t, played, nil)
		failed := make(chan error, 1)
		go func() {
			_, err := client.Complete(context.Background(), Text("Once"), each.options...)
			failed <- err
		}()
		<-called
		told(t, client, played, each.want...)
		if err := <-failed; !errors.Is(err, Cancelled) {
			t.Error(err)
		}
	}
}

func TestTheClientsEndInterruptsItsTurn(t *testing.T) {
	played := &script{}
	played.chat = &talk{played: played}
	client := serve(t, played, nil)
	chat, err := client.Chat(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	stream := chat.Say(context.Background(), "Hello")
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	told(t, client, played, "SendTurn", "Interrupt")
	if stream.Next() || !errors.Is(stream.Err(), Cancelled) {
		t.Error(stream.Err())
	}
}
