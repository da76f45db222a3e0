package llamaherd

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	v1 "llamaherd.dev/llamaherd/v1"
)

// Chat is an open conversation that lives in the service, for one goroutine, but for Interrupt.
//
// Each turn is one SendTurn call. A turn that broke is asked for again under its request_id, at any gateway, and nothing
// is held open between turns.
type Chat struct {
	calls *calls
	ready *v1.SessionReady
	turn  *Stream // the last one
}

// Chat begins a conversation. With setup.ResumptionHandle it goes on with one that has begun elsewhere, and everything
// else is as it was; nil takes the model's defaults.
func (c *Client) Chat(ctx context.Context, setup *v1.ChatSetup) (*Chat, error) {
	if setup == nil {
		setup = &v1.ChatSetup{}
	}
	request := &v1.OpenSessionRequest{Setup: setup}
	response, err := answer(ctx, c.calls, unary(chatStub, v1.ChatServiceClient.OpenSession, request))
	switch {
	case err != nil:
		return nil, err
	case response.GetReady() == nil:
		return nil, broken("the answer has no `ready`")
	default:
		return &Chat{calls: c.calls, ready: response.GetReady()}, nil
	}
}

// Handle goes on with the conversation at any gateway and from any program, until it expires. Keep it like a key.
func (c *Chat) Handle() string { return c.ready.GetResumptionHandle() }

// SessionID is its name in logs and traces.
func (c *Chat) SessionID() string { return c.ready.GetSessionId() }

// Settings is what its turns use.
func (c *Chat) Settings() *v1.Settings { return c.ready.GetSettings() }

// NumTurns is how many turns were in the history when it was opened here.
func (c *Chat) NumTurns() uint32 { return c.ready.GetNumTurns() }

// RunningGenerationID is a turn that somebody had begun and not read to its end when it was opened here: Attach reads it.
func (c *Chat) RunningGenerationID() string { return c.ready.GetGenerationId() }

// Say is the next turn, and streams the answer. Closing the stream early interrupts the turn, and the history keeps the
// text that was read.
func (c *Chat) Say(ctx context.Context, content string, options ...StartOption) *Stream {
	start := startOf(options)
	message := &v1.UserMessage{Content: content, RequestId: &start.requestID}
	reading := &reading{}
	request := &v1.SendTurnRequest{SessionHandle: c.Handle(), UserMessage: message}
	turn := &turn{chat: c, reading: reading, request: request, isFound: start.isNamed}
	stream := newStream(ctx, c.calls, reading, turn)
	if c.turn != nil && c.turn.Completed() == nil {
		stream.before, turn.followsInterrupt = c.turn, true
	}
	c.turn = stream
	return stream
}

// Interrupt ends the running turn; what was said stays in the history. It tells whether a turn was running.
func (c *Chat) Interrupt(ctx context.Context) (bool, error) {
	return c.interrupt(ctx, nil)
}

// InterruptAt is Interrupt, and the history keeps the text up to so many tokens: what the user has seen.
func (c *Chat) InterruptAt(ctx context.Context, numTokensShown uint32) (bool, error) {
	return c.interrupt(ctx, &numTokensShown)
}

// Close interrupts the running turn, if there is one. The conversation is kept.
func (c *Chat) Close() error {
	if c.turn == nil {
		return nil
	}
	return c.turn.Close()
}

// End ends the conversation for good; the service deletes what was said.
func (c *Chat) End(ctx context.Context) error {
	_ = c.Close() // the turn ends with the conversation
	request := &v1.EndSessionRequest{SessionHandle: c.Handle()}
	_, err := answer(ctx, c.calls, unary(chatStub, v1.ChatServiceClient.EndSession, request))
	return err
}

func (c *Chat) interrupt(ctx context.Context, numTokensShown *uint32) (bool, error) {
	request := &v1.InterruptRequest{SessionHandle: c.Handle(), NumTokensShown: numTokensShown}
	response, err := answer(ctx, c.calls, unary(chatStub, v1.ChatServiceClient.Interrupt, request))
	return response.GetWasRunning(), err
}

// turn is the source of one turn, as a generation with one choice.
type turn struct {
	chat    *Chat
	reading *reading
	request *v1.SendTurnRequest
	wasSent bool
	isTold  bool
	isFound bool // its caller can come back to it
	// The turn before was left by its reader, and may be running for a moment yet.
	followsInterrupt bool
}

// next is the same every time: the service finds the turn by the message's request_id, and tells it from its start.
func (t *turn) next() ask[*call] {
	t.wasSent = true
	return func(ctx context.Context, at *gateway, _ ...grpc.CallOption) (*call, error) {
		rpc, err := at.chat.SendTurn(ctx, t.request)
		if err != nil {
			return nil, err
		}
		receive := func() (response, error) {
			said, err := rpc.Recv()
			t.isTold = t.isTold || err == nil
			if end := said.GetTurnFinished(); end != nil {
				t.reading.turn = end
			}
			return turnResponse{said}, err
		}
		return &call{receive: receive, trailer: rpc.Trailer}, nil
	}
}

func (t *turn) failed(err *Error) *Error {
	if err.Kind == TurnRunning && t.followsInterrupt {
		return &Error{Kind: Unavailable, Code: codes.Unavailable, Text: "the turn that was interrupted ends"}
	}
	return err
}

func (t *turn) mayRun() bool { return t.wasSent }

func (t *turn) isKnown() bool { return t.isTold }

func (t *turn) mayComeBack() bool { return t.isFound }

// farewell interrupts the turn: the user has seen it as far as it was read.
func (t *turn) farewell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	_, err := t.chat.InterruptAt(ctx, t.reading.position())
	return err
}

// turnResponse is a turn's response, as a generation's.
type turnResponse struct{ *v1.SendTurnResponse }

func (turnResponse) GetAccepted() *v1.Accepted { return nil }

func (r turnResponse) GetChoiceFinished() *v1.ChoiceFinished {
	return r.GetTurnFinished().GetFinished()
}

func (r turnResponse) GetCompleted() *v1.Completed {
	end := r.GetTurnFinished()
	if end == nil {
		return nil
	}
	return &v1.Completed{Usage: end.GetUsage(), Timings: end.GetTimings()}
}
