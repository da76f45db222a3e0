// Command conformance runs scenarios of tests/conformance/scenarios.yaml: each is a line of standard input, {gateways, steps};
// one observation for each step is a line of standard output. What is to be observed, the file says and the test checks.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"time"

	"llamaherd.dev/llamaherd"
	v1 "llamaherd.dev/llamaherd/v1"
)

type scenario struct {
	Gateways map[string]string `json:"gateways"`
	Steps    []step            `json:"steps"`
}

type step struct {
	Do           string                     `json:"do"`
	At           []string                   `json:"at"`
	PatienceS    *float64                   `json:"patience_s"`
	TimeoutS     *float64                   `json:"timeout_s"`
	Prompt       string                     `json:"prompt"`
	SystemPrompt string                     `json:"system_prompt"`
	Knobs        map[string]json.RawMessage `json:"knobs"`
	CancelAfter  *int                       `json:"cancel_after"` // tokens, then Cancel by another call
	LeaveAfter   *int                       `json:"leave_after"`  // tokens, then Close
	CloseAfter   *int                       `json:"close_after"`  // tokens, then the client's
	TellAfter    *int                       `json:"tell_after"`   // tokens, then the generation's id is a line of standard output
	FromPosition uint32                     `json:"from_position"`
}

// runner has one scenario's clients, its conversation, and what an `attach` goes on with.
type runner struct {
	gateways     map[string]string
	clients      []*llamaherd.Client
	chat         *llamaherd.Chat
	generationID string
	chains       []uint32
}

func main() {
	scenarios, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var said scenario
		err := scenarios.Decode(&said)
		if err == io.EOF {
			return
		}
		var observations []*observation
		if err == nil {
			observations, err = said.run()
		}
		if err == nil {
			err = answers.Encode(observations)
		}
		if err != nil {
			log.Fatal(err)
		}
	}
}

func (s *scenario) run() ([]*observation, error) {
	r := runner{gateways: s.Gateways}
	defer func() {
		for _, client := range r.clients {
			client.Close()
		}
	}()
	observations := []*observation{}
	for _, step := range s.Steps {
		seen, err := r.run(step)
		if err != nil {
			return nil, err
		}
		observations = append(observations, seen)
	}
	return observations, nil
}

// run does a step by a client of its own. The error is one that no step may end with.
func (r *runner) run(step step) (*observation, error) {
	addresses := []string{}
	for _, name := range atLeast(step.At, "one", "two") {
		addresses = append(addresses, r.gateways[name])
	}
	client, err := llamaherd.New(addresses, llamaherd.WithPatience(seconds(step.PatienceS, 60)))
	if err != nil {
		return nil, err
	}
	r.clients = append(r.clients, client)
	ctx, cancel := context.WithTimeout(context.Background(), seconds(step.TimeoutS, 100))
	defer cancel()
	seen := newObservation()
	err = r.act(ctx, client, step, seen)
	var failure *llamaherd.Error
	if errors.As(err, &failure) {
		seen.fail(failure)
		err = nil
	}
	return seen, err
}

func (r *runner) act(ctx context.Context, client *llamaherd.Client, step step, seen *observation) error {
	spec, err := specOf(step.Prompt, step.Knobs)
	if err != nil {
		return err
	}
	cancelIt := func() error {
		_, err := client.Cancel(ctx, r.generationID)
		return err
	}
	switch step.Do {
	case "generate":
		return r.read(client.Generate(ctx, spec), step, seen, cancelIt)
	case "attach":
		place := llamaherd.Place{GenerationID: r.generationID, FromPosition: step.FromPosition}
		if step.FromPosition > 0 {
			place.Chain = &r.chains[step.FromPosition-1]
		}
		return r.read(client.Attach(ctx, place), step, seen, cancelIt)
	case "complete":
		return complete(ctx, client, spec, seen)
	case "open":
		setup := &v1.ChatSetup{SystemPrompt: step.SystemPrompt, Sampling: spec.Sampling, Stopping: spec.Stopping}
		r.chat, err = client.Chat(ctx, setup)
		return err
	case "resume":
		if r.chat, err = client.Chat(ctx, &v1.ChatSetup{ResumptionHandle: r.chat.Handle()}); err == nil {
			seen.setNumTurns(r.chat.NumTurns())
		}
		return err
	case "end":
		return r.chat.End(ctx)
	case "say":
		return r.read(r.chat.Say(ctx, step.Prompt), step, seen, func() error {
			_, err := r.chat.Interrupt(ctx)
			return err
		})
	default:
		return fmt.Errorf("no such step: %q", step.Do)
	}
}

// read observes a stream, up to where the step says to leave it or to have it ended by `stop`.
func (r *runner) read(stream *llamaherd.Stream, step step, seen *observation, stop func() error) error {
	defer stream.Close()
	r.chains = nil
	isStopped, isTold := false, false
	for stream.Next() {
		delta := stream.Delta()
		seen.add(delta.Choice, delta.Text, delta.Tokens)
		seen.end(delta.Finished)
		for _, token := range delta.Tokens {
			r.chains = append(r.chains, token.GetChain())
		}
		r.generationID = stream.GenerationID()
		if len(seen.Positions) >= orNever(step.TellAfter) && !isTold {
			isTold = true
			fmt.Printf("%q\n", r.generationID)
		}
		if len(seen.Positions) >= orNever(step.LeaveAfter) {
			break
		}
		if len(seen.Positions) >= orNever(step.CloseAfter) {
			if err := r.clients[len(r.clients)-1].Close(); err != nil {
				return err
			}
		}
		if len(seen.Positions) >= orNever(step.CancelAfter) && !isStopped {
			isStopped = true
			if err := stop(); err != nil {
				return err
			}
		}
	}
	if completed := stream.Completed(); completed != nil {
		seen.setPromptTokens(completed.GetUsage().GetPromptTokens())
	}
	if turn := stream.Turn(); turn != nil {
		number := turn.GetTurn()
		seen.Turn = &number
	}
	return stream.Err()
}

func complete(ctx context.Context, client *llamaherd.Client, spec *v1.GenerationSpec, seen *observation) error {
	answer, err := client.Complete(ctx, spec)
	for number, choice := range answer.GetChoices() {
		seen.add(uint32(number), choice.GetText(), choice.GetTokens())
		seen.end(choice.GetFinished())
	}
	seen.setPromptTokens(answer.GetUsage().GetPromptTokens())
	return err
}

func atLeast(names []string, otherwise ...string) []string {
	if len(names) == 0 {
		return otherwise
	}
	return names
}

func seconds(given *float64, otherwise float64) time.Duration {
	if given != nil {
		otherwise = *given
	}
	return time.Duration(otherwise * float64(time.Second))
}

func orNever(num *int) int {
	if num == nil {
		return math.MaxInt
	}
	return *num
}
