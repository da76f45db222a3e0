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

func (g *generation) call(ctx context.Context, at *gateway) (*call, error) {
	if g.request != nil && g.reading.generationID == "" {
		g.wasCalled = true
		rpc, err := at.generation.Generate(ctx, g.request)
		if err != nil {
			return nil, err
		}
		return callOf[*v1.GenerateResponse](rpc), nil
	}
	request := &v1.AttachRequest{GenerationId: g.reading.generationID, FromPosition: g.reading.position()}
	if request.FromPosition > 0 {
		request.Chain = g.reading.chain()
	}
	rpc, err := at.generation.Attach(ctx, request)
	if err != nil {
		return nil, err
	}
	return callOf[*v1.AttachResponse](rpc), nil
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
}) *call {
	receive := func() (response, error) { return rpc.Recv() }
	return &call{receive: receive, trailer: rpc.Trailer}
}
