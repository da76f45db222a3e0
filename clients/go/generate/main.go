// Command generate sends one message to a llamaherd service and prints the answer as it comes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	llamaherdv1 "llamaherd.dev/llamaherd/v1"
)

func main() {
	address := flag.String("address", "127.0.0.1:50051", "the gateway's HOST:PORT")
	temperature := flag.Float64("temperature", 0, "0 is greedy; the model's own when the flag is absent")
	timeout := flag.Duration("timeout", time.Minute, "the call's deadline")
	flag.Parse()

	content := strings.Join(flag.Args(), " ")
	if content == "" {
		content = "Count to ten"
	}
	spec := chatSpec(content)
	flag.Visit(func(given *flag.Flag) {
		if given.Name == "temperature" {
			spec.Sampling = &llamaherdv1.Sampling{Temperature: proto.Float32(float32(*temperature))}
		}
	})

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if err := generate(ctx, *address, spec, os.Stdout); err != nil {
		printError(os.Stderr, err)
		os.Exit(1)
	}
}

// chatSpec asks for the answer to one user message.
func chatSpec(content string) *llamaherdv1.GenerationSpec {
	message := &llamaherdv1.ChatMessage{Role: llamaherdv1.Role_ROLE_USER, Content: content}
	chat := &llamaherdv1.ChatInput{Messages: []*llamaherdv1.ChatMessage{message}}
	return &llamaherdv1.GenerationSpec{Input: &llamaherdv1.GenerationSpec_Chat{Chat: chat}}
}

// generate writes the text of every token to out. The error is a gRPC status, or says that an OK stream did not
// end with `completed`, which would be a bug of the service.
func generate(ctx context.Context, address string, spec *llamaherdv1.GenerationSpec, out io.Writer) error {
	conn, err := grpc.Dial(address, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer conn.Close()

	client := llamaherdv1.NewGenerationServiceClient(conn)
	stream, err := client.Generate(ctx, &llamaherdv1.GenerateRequest{Spec: spec})
	if err != nil {
		return err
	}
	isComplete := false
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for _, token := range response.GetTokens() {
			fmt.Fprint(out, token.GetText())
		}
		isComplete = isComplete || response.GetCompleted() != nil
	}
	fmt.Fprintln(out)
	if !isComplete {
		return errors.New("the stream ended without completed")
	}
	return nil
}

// printError writes what an error of any call says: its code and message, then its google.rpc details.
func printError(out io.Writer, err error) {
	failure, ok := status.FromError(err)
	if !ok {
		fmt.Fprintln(out, err)
		return
	}
	fmt.Fprintf(out, "%s: %s\n", code.Code(failure.Code()), failure.Message())
	for _, detail := range failure.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Fprintf(out, "reason %s (%s)\n", detail.GetReason(), detail.GetDomain())
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				fmt.Fprintf(out, "field %s: %s\n", violation.GetField(), violation.GetDescription())
			}
		}
	}
}
