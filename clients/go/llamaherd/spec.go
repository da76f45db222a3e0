package llamaherd

import (
	"crypto/rand"
	"fmt"

	v1 "llamaherd.dev/llamaherd/v1"
)

// Text is plain text to continue. Knobs are fields of the spec: Sampling, Stopping, Output. Their bounds and defaults
// stand in protos/llamaherd/v1/common.proto.
func Text(prompt string) *v1.GenerationSpec {
	return &v1.GenerationSpec{Input: &v1.GenerationSpec_Prompt{Prompt: prompt}}
}

// Messages is a conversation whose next message is wanted: an optional system message, then the user's and the
// assistant's in turn.
func Messages(messages ...*v1.ChatMessage) *v1.GenerationSpec {
	return &v1.GenerationSpec{Input: &v1.GenerationSpec_Chat{Chat: &v1.ChatInput{Messages: messages}}}
}

// TokenIDs is a prompt that is already encoded, used exactly as given.
func TokenIDs(ids ...uint32) *v1.GenerationSpec {
	return &v1.GenerationSpec{Input: &v1.GenerationSpec_TokenIds{TokenIds: &v1.TokenIds{Ids: ids}}}
}

// System gives instructions for the whole conversation; only as its first message.
func System(content string) *v1.ChatMessage {
	return &v1.ChatMessage{Role: v1.Role_ROLE_SYSTEM, Content: content}
}

// User is what the user says.
func User(content string) *v1.ChatMessage {
	return &v1.ChatMessage{Role: v1.Role_ROLE_USER, Content: content}
}

// Assistant is what the model has said.
func Assistant(content string) *v1.ChatMessage {
	return &v1.ChatMessage{Role: v1.Role_ROLE_ASSISTANT, Content: content}
}

// newID is a random UUID.
func newID() string {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		panic(err) // the system has no random numbers
	}
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
