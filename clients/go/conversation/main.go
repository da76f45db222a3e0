// Command conversation says the same thing twice, and goes on with the conversation by its handle.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/protobuf/proto"

	"llamaherd.dev/llamaherd"
	v1 "llamaherd.dev/llamaherd/v1"
)

func main() {
	herd, err := llamaherd.New(os.Args[1:]) // HOST:PORT of one gateway, or of several
	if err != nil {
		log.Fatal(err)
	}
	defer herd.Close()
	ctx := context.Background()
	chat, err := herd.Chat(ctx, &v1.ChatSetup{Sampling: &v1.Sampling{Temperature: proto.Float32(0)}})
	if err != nil {
		log.Fatal(err)
	}
	for i := 0; i < 2; i++ {
		stream := chat.Say(ctx, "Count to ten")
		for stream.Next() {
			fmt.Print(stream.Delta().Text)
		}
		if err := stream.Err(); err != nil {
			log.Fatal(err)
		}
		fmt.Println()
	}
	again, err := herd.Chat(ctx, &v1.ChatSetup{ResumptionHandle: chat.Handle()})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(again.NumTurns(), "turns")
}
