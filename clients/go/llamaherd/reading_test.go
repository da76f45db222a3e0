package llamaherd

import (
	"errors"
	"testing"

	v1 "llamaherd.dev/llamaherd/v1"
)

// tokens are those at positions from `from` up to `to`, of one choice, as a service sends them.
func tokens(from, to uint32) *v1.GenerateResponse {
	said := &v1.GenerateResponse{}
	chain := uint32(0)
	for position := uint32(0); position < to; position++ {
		chain = extendChain(chain, 0, 100+position)
		if position >= from {
			token := &v1.Token{Index: position, Position: position, Id: 100 + position, Text: "x", Chain: chain}
			said.Tokens = append(said.Tokens, token)
		}
	}
	return said
}

func accepted(id string) *v1.GenerateResponse {
	return &v1.GenerateResponse{Event: &v1.GenerateResponse_Accepted{Accepted: &v1.Accepted{GenerationId: id}}}
}

func completed(numTokens uint32) *v1.GenerateResponse {
	usage := &v1.Usage{OutputTokens: numTokens}
	return &v1.GenerateResponse{Event: &v1.GenerateResponse_Completed{Completed: &v1.Completed{Usage: usage}}}
}

func finished(choice uint32) *v1.GenerateResponse {
	end := &v1.ChoiceFinished{Choice: choice, Text: "held back"}
	return &v1.GenerateResponse{Event: &v1.GenerateResponse_ChoiceFinished{ChoiceFinished: end}}
}

func TestTheChainIsThatOfEveryClient(t *testing.T) {
	if chain := extendChain(extendChain(0, 0, 1), 3, 32000); chain != 0xa5b8fbda {
		t.Errorf("%#x", chain)
	}
}

func TestWhatComesAgainIsGivenOutOnce(t *testing.T) {
	r := &reading{}
	for _, each := range []struct {
		said     response
		position uint32
		tokens   int
		isAny    bool
	}{
		{accepted("one"), 0, 0, true},
		{tokens(0, 3), 3, 3, true},
		{accepted("one"), 3, 0, false},
		{tokens(0, 2), 3, 0, false},
		{tokens(1, 5), 5, 2, true},
		{finished(0), 5, 0, true},
		{finished(0), 5, 0, false},
		{completed(5), 5, 0, true},
	} {
		news, err := r.take(each.said)
		if err != nil || len(news.tokens) != each.tokens || news.isAny != each.isAny || r.position() != each.position {
			t.Errorf("%v: %+v, %v, at %d", each.said, news, err, r.position())
		}
	}
	if r.goesOn() || *r.chain() != tokens(4, 5).Tokens[0].Chain {
		t.Errorf("%+v", r)
	}
}

func TestWhatDoesNotContinueIsDataLoss(t *testing.T) {
	forked := tokens(2, 3)
	forked.Tokens[0].Id++
	other := tokens(1, 2)
	other.Tokens[0].Chain++
	for name, said := range map[string]response{
		"a gap":                 tokens(3, 4),
		"another token":         forked,
		"another token again":   other,
		"too early an end":      completed(3),
		"another generation":    accepted("two"),
		"a gap behind new ones": &v1.GenerateResponse{Tokens: append(tokens(2, 3).Tokens, tokens(5, 6).Tokens...)},
	} {
		r := &reading{}
		for _, before := range []response{accepted("one"), tokens(0, 2)} {
			if _, err := r.take(before); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.take(said); !errors.Is(err, DataLoss) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAReadingFromAPlaceChecksWhatItWasTold(t *testing.T) {
	told := tokens(1, 2).Tokens[0].Chain
	for _, chain := range []*uint32{nil, &told} {
		r := &reading{start: 2, firstChain: chain}
		news, err := r.take(tokens(2, 4))
		if err != nil || len(news.tokens) != 2 || r.position() != 4 {
			t.Errorf("%+v, %v", news, err)
		}
	}
	wrong := told + 1
	if _, err := (&reading{start: 2, firstChain: &wrong}).take(tokens(2, 4)); !errors.Is(err, DataLoss) {
		t.Error(err)
	}
}

func TestDeltasAreOfOneChoiceEach(t *testing.T) {
	said := []*v1.Token{{Choice: 1, Text: "a"}, {Choice: 1, Text: "b"}, {Choice: 0, Text: "c"}, {Choice: 1, Text: "d"}}
	deltas := deltasOf(news{tokens: said, finished: &v1.ChoiceFinished{Choice: 1, Text: "e"}})
	want := []Delta{{Choice: 1, Text: "ab"}, {Choice: 0, Text: "c"}, {Choice: 1, Text: "d"}, {Choice: 1, Text: "e"}}
	if len(deltas) != len(want) {
		t.Fatal(deltas)
	}
	for n, delta := range deltas {
		if delta.Choice != want[n].Choice || delta.Text != want[n].Text || (delta.Finished != nil) != (n == 3) {
			t.Errorf("%d: %+v", n, delta)
		}
	}
}
