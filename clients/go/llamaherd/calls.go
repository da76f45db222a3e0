package llamaherd

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	v1 "llamaherd.dev/llamaherd/v1"
)

// calls has the gateways of one client, and makes calls that are tried again.
type calls struct {
	how       reach
	gateways  []*gateway
	targets   *targets
	running   running
	farewells farewells
	isClosed  atomic.Bool
}

func newCalls(addresses []string, how reach) (*calls, error) {
	c := &calls{how: how, targets: newTargets(len(addresses), time.Now)}
	for _, address := range addresses {
		gateway, err := dial(address, how)
		if err != nil {
			_ = c.close() // what was dialled before; the error that counts is the other one
			return nil, err
		}
		c.gateways = append(c.gateways, gateway)
	}
	return c, nil
}

// close has everything left that still runs, and waits for the farewells: whoever is not waited for has to know.
func (c *calls) close() error {
	c.running.cut()
	c.farewells.wait()
	c.isClosed.Store(true)
	var first error
	for _, gateway := range c.gateways {
		if err := gateway.conn.Close(); first == nil {
			first = err
		}
	}
	return first
}

// tries begins a call.
func (c *calls) tries(ctx context.Context) *tries {
	return newTries(ctx, c.targets, c.how.patience)
}

// next is where the next attempt goes. The error is Cancelled once the client is closed.
func (c *calls) next(t *tries) (*gateway, error) {
	if c.isClosed.Load() {
		return nil, closed()
	}
	return c.gateways[t.nextTarget()], nil
}

// ask is one call at one gateway. Repeating it changes nothing.
type ask[T any] func(context.Context, *gateway, ...grpc.CallOption) (T, error)

// unary is a method of the generated stubs with its request.
func unary[S, Q, A any](
	stub func(*gateway) S, method func(S, context.Context, Q, ...grpc.CallOption) (A, error), request Q,
) ask[A] {
	return func(ctx context.Context, g *gateway, options ...grpc.CallOption) (A, error) {
		return method(stub(g), ctx, request, options...)
	}
}

func generationStub(g *gateway) v1.GenerationServiceClient { return g.generation }
func chatStub(g *gateway) v1.ChatServiceClient             { return g.chat }
func modelStub(g *gateway) v1.ModelServiceClient           { return g.model }

// answer makes a call, again where that is right. The error is an *Error.
func answer[T any](ctx context.Context, c *calls, once ask[T]) (T, error) {
	tries := c.tries(ctx)
	for {
		answer, err := attempt(ctx, c, tries, once)
		if err == nil {
			return answer, nil
		}
		if err := tries.wait(ctx, err); err != nil {
			return answer, err
		}
	}
}

func attempt[T any](ctx context.Context, c *calls, t *tries, once ask[T]) (T, *Error) {
	var trailer metadata.MD
	gateway, err := c.next(t)
	if err != nil {
		var none T
		return none, typed(ctx, err, nil)
	}
	answer, err := once(c.how.outgoing(ctx), gateway, grpc.Trailer(&trailer))
	if err != nil {
		return answer, typed(ctx, err, trailer)
	}
	return answer, nil
}
