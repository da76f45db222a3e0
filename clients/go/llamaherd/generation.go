package llamaherd

import (
	"context"

	"google.golang.org/grpc"

	v1 "llamaherd.dev/llamaherd/v1"
)

// generation is the source of one generation.
//
// Until `accepted` has come, the call to make is Generate with the same request_id, which attaches to the generation if
// the first call did reach the service; afterwards it is Attach, from the next position and with the chain.
type generation struct {
	client    *Client
	reading   *reading
	request   *v1.GenerateRequest // nil reads one that another call has started
	wasCalled bool                // a Generate call may have reached the service
	isFound   bool                // its caller can come back to it
}

func (g *generation) next() ask[*call] {
	if g.request != nil && g.reading.generationID == "" {
		g.wasCalled = true
		return func(ctx context.Context, at *gateway, _ ...grpc.CallOption) (*call, error) {
			rpc, err := at.generation.Generate(ctx, g.request)
			return callOf[*v1.GenerateResponse](rpc, err)
		}
	}
	request := &v1.AttachRequest{GenerationId: g.reading.generationID, FromPosition: g.reading.position()}
	if request.FromPosition > 0 {
		request.Chain = g.reading.chain()
	}
	return func(ctx context.Context, at *gateway, _ ...grpc.CallOption) (*call, error) {
		rpc, err := at.generation.Attach(ctx, request)
		return callOf[*v1.AttachResponse](rpc, err)
	}
}

// failed has a generation that is gone before any of it came started again: its record was lost with a tail of the log.
func (g *generation) failed(err *Error) *Error {
	if err.Reason != "" {
		g.wasCalled = false
	}
	if err.Kind != UnknownGeneration || g.request == nil || g.reading.position() > 0 {
		return err
	}
	g.reading.forget()
	return broken("the generation was lost before its first token")
}

func (g *generation) mayRun() bool {
	return g.request != nil && (g.reading.generationID != "" || g.wasCalled)
}

func (g *generation) isKnown() bool { return g.reading.generationID != "" }

func (g *generation) mayComeBack() bool { return g.isFound }

// farewell cancels what was read.
func (g *generation) farewell(ctx context.Context) error {
	if id := g.reading.generationID; id != "" {
		return g.client.cancelKnown(ctx, id)
	}
	return g.client.cancelStarted(ctx, g.request.GetSpec(), g.request.GetRequestId())
}

// callOf is a call whose responses have everything that is read.
func callOf[R response](rpc interface {
	grpc.ClientStream
	Recv() (R, error)
}, err error) (*call, error) {
	if err != nil {
		return nil, err
	}
	receive := func() (response, error) { return rpc.Recv() }
	return &call{receive: receive, trailer: rpc.Trailer}, nil
}
