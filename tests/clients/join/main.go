// Command join decodes one GenerateResponse from standard input and prints each of its tokens as a line of JSON.
package main

import (
	"encoding/json"
	"io"
	"log"
	"os"

	"google.golang.org/protobuf/proto"

	llamaherdv1 "llamaherd.dev/llamaherd/v1"
)

func main() {
	serialized, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	response := &llamaherdv1.GenerateResponse{}
	if err := proto.Unmarshal(serialized, response); err != nil {
		log.Fatal(err)
	}
	lines := json.NewEncoder(os.Stdout)
	for _, t := range response.GetTokens() {
		topIDs := []uint32{}
		for _, top := range t.GetTopLogprobs() {
			topIDs = append(topIDs, top.GetId())
		}
		row := []any{t.GetChoice(), t.GetIndex(), t.GetPosition(), t.GetId(), t.GetText(), t.GetChain(), topIDs}
		if err := lines.Encode(row); err != nil {
			log.Fatal(err)
		}
	}
}
