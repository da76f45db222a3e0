package main

import (
	"encoding/json"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"llamaherd.dev/llamaherd"
	v1 "llamaherd.dev/llamaherd/v1"
)

// observation is what one step showed.
type observation struct {
	Texts        []string   `json:"texts"`
	IDs          [][]uint32 `json:"ids"`
	Positions    []uint32   `json:"positions"`
	NumSilent    int        `json:"num_silent"`
	Reasons      []string   `json:"reasons"`
	StopStrings  []string   `json:"stop_strings"`
	PromptTokens *uint32    `json:"prompt_tokens,omitempty"`
	Turn         *uint32    `json:"turn,omitempty"`
	NumTurns     *uint32    `json:"num_turns,omitempty"`
	Error        *failure   `json:"error,omitempty"`
}

type failure struct {
	Kind          string   `json:"kind"`
	Reason        string   `json:"reason"`
	Violations    []string `json:"violations"`
	HasRetryAfter bool     `json:"has_retry_after"`
}

func newObservation() *observation {
	return &observation{
		Texts: []string{}, IDs: [][]uint32{}, Positions: []uint32{}, Reasons: []string{}, StopStrings: []string{},
	}
}

func (o *observation) add(choice uint32, text string, tokens []*v1.Token) {
	for uint32(len(o.Texts)) <= choice {
		o.Texts = append(o.Texts, "")
		o.IDs = append(o.IDs, []uint32{})
	}
	o.Texts[choice] += text
	for _, token := range tokens {
		o.IDs[choice] = append(o.IDs[choice], token.GetId())
		o.Positions = append(o.Positions, token.GetPosition())
		if token.GetText() == "" {
			o.NumSilent++
		}
	}
}

func (o *observation) end(finished *v1.ChoiceFinished) {
	if finished == nil {
		return
	}
	for uint32(len(o.Reasons)) <= finished.GetChoice() {
		o.Reasons = append(o.Reasons, "")
		o.StopStrings = append(o.StopStrings, "")
	}
	o.Reasons[finished.GetChoice()] = strings.TrimPrefix(finished.GetReason().String(), "FINISH_REASON_")
	o.StopStrings[finished.GetChoice()] = finished.GetStopString()
}

func (o *observation) setPromptTokens(num uint32) { o.PromptTokens = &num }

func (o *observation) setNumTurns(num uint32) { o.NumTurns = &num }

func (o *observation) fail(err *llamaherd.Error) {
	fields := []string{}
	for _, violation := range err.Violations {
		fields = append(fields, violation.Field)
	}
	o.Error = &failure{string(err.Kind), err.Reason, fields, err.RetryAfter != nil}
}

// specOf sets each knob in the field of its name, wherever in the spec it is.
func specOf(prompt string, knobs map[string]json.RawMessage) (*v1.GenerationSpec, error) {
	spec := llamaherd.Text(prompt)
	parts := map[string]map[string]json.RawMessage{"sampling": {}, "stopping": {}, "output": {}}
	whole := map[string]any{}
	for name, value := range knobs {
		whole[name] = value
		for part, fields := range parts {
			if hasField(spec, part, name) {
				fields[name] = value
				delete(whole, name)
			}
		}
	}
	for part, fields := range parts {
		whole[part] = fields
	}
	whole["prompt"] = prompt
	text, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return spec, protojson.Unmarshal(text, spec)
}

func hasField(spec *v1.GenerationSpec, part, name string) bool {
	fields := spec.ProtoReflect().Descriptor().Fields()
	return fields.ByName(protoreflect.Name(part)).Message().Fields().ByName(protoreflect.Name(name)) != nil
}
