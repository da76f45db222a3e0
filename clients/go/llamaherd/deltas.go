package llamaherd

import (
	"strings"

	v1 "llamaherd.dev/llamaherd/v1"
)

// Delta is what came of one choice.
type Delta struct {
	// Choice is which, from 0.
	Choice uint32
	// Text goes at the end of the choice's text.
	Text string
	// Tokens are what the text came with; none if the choice's end released text that was held back.
	Tokens []*v1.Token
	// Finished says why the choice ended, with its last delta.
	Finished *v1.ChoiceFinished
}

// deltasOf is the deltas of one response; accepted, queued, started and completed have none.
func deltasOf(news news) []Delta {
	var deltas []Delta
	for tokens := news.tokens; len(tokens) > 0; {
		num := 1
		for num < len(tokens) && tokens[num].GetChoice() == tokens[0].GetChoice() {
			num++
		}
		deltas = append(deltas, Delta{Choice: tokens[0].GetChoice(), Text: textOf(tokens[:num]), Tokens: tokens[:num]})
		tokens = tokens[num:]
	}
	if end := news.finished; end != nil {
		deltas = append(deltas, Delta{Choice: end.GetChoice(), Text: end.GetText(), Finished: end})
	}
	return deltas
}

func textOf(tokens []*v1.Token) string {
	var text strings.Builder
	for _, token := range tokens {
		text.WriteString(token.GetText())
	}
	return text.String()
}
