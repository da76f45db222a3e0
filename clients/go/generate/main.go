// Command generate sends one message to a herd and prints the answer as it comes.
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
	"google.golang.org/protobuf/proto"

	"llamaherd.dev/llamaherd"
	v1 "llamaherd.dev/llamaherd/v1"
)

func main() {
	addresses := flag.String("address", "127.0.0.1:50051", "the gateway's HOST:PORT, or those of several, with commas")
	temperature := flag.Float64("temperature", 0, "0 is greedy; the model's own when the flag is absent")
	timeout := flag.Duration("timeout", time.Minute, "the deadline")
	patience := flag.Duration("patience", time.Minute, "how long to try again while nothing comes")
	flag.Parse()

	content := strings.Join(flag.Args(), " ")
	if content == "" {
		content = "Count to ten"
	}
	spec := llamaherd.Messages(llamaherd.User(content))
	flag.Visit(func(given *flag.Flag) {
		if given.Name == "temperature" {
			spec.Sampling = &v1.Sampling{Temperature: proto.Float32(float32(*temperature))}
		}
	})

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if err := generate(ctx, strings.Split(*addresses, ","), *patience, spec); err != nil {
		printError(os.Stderr, err)
		os.Exit(1)
	}
}

// generate writes the text of every delta to standard output, and a newline behind it.
func generate(ctx context.Context, addresses []string, patience time.Duration, spec *v1.GenerationSpec) error {
	herd, err := llamaherd.New(addresses, llamaherd.WithPatience(patience))
	if err != nil {
		return err
	}
	defer herd.Close()

	stream := herd.Generate(ctx, spec)
	defer stream.Close()
	for stream.Next() {
		fmt.Print(stream.Delta().Text)
	}
	fmt.Println()
	return stream.Err()
}

// printError writes what an error says: its code and text, the service's reason and the fields that are wrong.
func printError(out io.Writer, err error) {
	var failure *llamaherd.Error
	if !errors.As(err, &failure) {
		fmt.Fprintln(out, err)
		return
	}
	fmt.Fprintf(out, "%s: %s\n", code.Code(failure.Code), failure.Text)
	if failure.Reason != "" {
		fmt.Fprintf(out, "reason %s (llamaherd.dev)\n", failure.Reason)
	}
	for _, violation := range failure.Violations {
		fmt.Fprintf(out, "field %s: %s\n", violation.Field, violation.Description)
	}
}
