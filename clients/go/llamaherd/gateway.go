package llamaherd

import (
	"context"
	"crypto/tls"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	v1 "llamaherd.dev/llamaherd/v1"
)

// A gateway that is frozen still has its connection; only an unanswered ping tells, within the sum of these two.
const (
	pingInterval = 10 * time.Second // the shortest that grpc-go permits
	pingTimeout  = 5 * time.Second
)

// reach is how to speak to the gateways, and how long.
type reach struct {
	tls         *tls.Config
	apiKey      string
	patience    time.Duration
	dialOptions []grpc.DialOption
}

// gateway has the stubs of one gateway, over one connection.
type gateway struct {
	conn       *grpc.ClientConn
	generation v1.GenerationServiceClient
	chat       v1.ChatServiceClient
	model      v1.ModelServiceClient
}

func dial(address string, how reach) (*gateway, error) {
	options := []grpc.DialOption{
		grpc.WithDisableRetry(), // one place decides about retries, tries.go
		// A name that stands for several gateways is used by turns, and around one that has gone.
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout}),
		// Bounded by the context; with log-probabilities it may pass 4 MiB.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstWait, Multiplier: 2, Jitter: 0.2, MaxDelay: longestWait},
			MinConnectTimeout: 3 * time.Second,
		}),
	}
	if how.tls != nil {
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(how.tls)))
	} else {
		options = append(options, grpc.WithInsecure())
	}
	conn, err := grpc.Dial(address, append(options, how.dialOptions...)...)
	if err != nil {
		return nil, err
	}
	return &gateway{
		conn:       conn,
		generation: v1.NewGenerationServiceClient(conn),
		chat:       v1.NewChatServiceClient(conn),
		model:      v1.NewModelServiceClient(conn),
	}, nil
}

// outgoing adds the key to what goes with a call.
func (r reach) outgoing(ctx context.Context) context.Context {
	if r.apiKey == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+r.apiKey)
}
