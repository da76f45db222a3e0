package llamaherd

import (
	"encoding/binary"
	"hash/crc32"

	v1 "llamaherd.dev/llamaherd/v1"
)

// response is what every stream's responses have.
type response interface {
	GetTokens() []*v1.Token
	GetAccepted() *v1.Accepted
	GetQueued() *v1.Queued
	GetStarted() *v1.Started
	GetChoiceFinished() *v1.ChoiceFinished
	GetCompleted() *v1.Completed
}

// news is what a response adds to what was given out.
type news struct {
	tokens   []*v1.Token
	finished *v1.ChoiceFinished
	isAny    bool // events count that have no delta
}

// reading is what was read of a generation so far, whatever happens to the calls that bring it. It does no I/O.
//
// Invariant: every token before position(), from where the reading began, was given out once and in order, and chains[i]
// is the chain after position start + i.
type reading struct {
	generationID  string
	start         uint32
	firstChain    *uint32 // of the token before start; nil if it was not told
	chains        []uint32
	accepted      *v1.Accepted
	finished      map[uint32]*v1.ChoiceFinished
	completed     *v1.Completed
	turn          *v1.TurnFinished // of a conversation
	attempts      uint32
	queuePosition *uint32
	isLeft        bool
}

// extendChain is the chain with one more token: CRC-32 over (choice, id), as Token.chain defines it.
func extendChain(chain, choice, tokenID uint32) uint32 {
	var words [8]byte
	binary.LittleEndian.PutUint32(words[:4], choice)
	binary.LittleEndian.PutUint32(words[4:], tokenID)
	return crc32.Update(chain, crc32.IEEETable, words[:])
}

// position is that of the next token.
func (r *reading) position() uint32 {
	return r.start + uint32(len(r.chains))
}

// chain is that over all tokens before position(); nil if it was not told and no token has come yet.
func (r *reading) chain() *uint32 {
	switch {
	case len(r.chains) > 0:
		return &r.chains[len(r.chains)-1]
	case r.start == 0:
		return new(uint32)
	default:
		return r.firstChain
	}
}

// goesOn tells whether there is more to read, and someone who reads it.
func (r *reading) goesOn() bool {
	return r.completed == nil && !r.isLeft
}

// forget starts again: the generation is gone before any of it came.
func (r *reading) forget() {
	r.generationID, r.accepted, r.attempts = "", nil, 0
}

// take is what a response adds. The error is DataLoss if it does not continue what was given out.
func (r *reading) take(said response) (news, *Error) {
	var news news
	for _, token := range said.GetTokens() {
		isNew, err := r.takeToken(token)
		if err != nil {
			return news, err
		}
		if isNew {
			news.tokens = append(news.tokens, token)
		}
	}
	if end := said.GetChoiceFinished(); r.takeEnd(end) {
		news.finished = end
	}
	isNewEvent, err := r.takeEvent(said)
	news.isAny = isNewEvent || news.finished != nil || len(news.tokens) > 0
	return news, err
}

func (r *reading) takeToken(token *v1.Token) (bool, *Error) {
	offset := int64(token.GetPosition()) - int64(r.start)
	switch num := int64(len(r.chains)); {
	case offset > num:
		return false, dataLoss("token %d came where %d was due", token.GetPosition(), r.position())
	case offset < 0:
		return false, nil
	case offset < num && r.chains[offset] != token.GetChain():
		return false, dataLoss("token %d is not the one that was delivered", token.GetPosition())
	case offset < num:
		return false, nil
	}
	if chain := r.chain(); chain != nil && extendChain(*chain, token.GetChoice(), token.GetId()) != token.GetChain() {
		return false, dataLoss("token %d does not continue what was delivered", token.GetPosition())
	}
	r.chains = append(r.chains, token.GetChain())
	return true, nil
}

// takeEvent tells whether an event other than an end is new; there may be none, or one of a newer service.
func (r *reading) takeEvent(said response) (bool, *Error) {
	switch {
	case said.GetAccepted() != nil:
		return r.takeAcceptance(said.GetAccepted())
	case said.GetQueued() != nil:
		position := said.GetQueued().GetPosition()
		isNew := r.attempts == 0 && (r.queuePosition == nil || *r.queuePosition != position)
		r.queuePosition = &position
		return isNew, nil
	case said.GetStarted() != nil:
		attempt := said.GetStarted().GetAttempt()
		isNew := attempt > r.attempts
		if isNew {
			r.attempts = attempt
		}
		return isNew, nil
	case said.GetCompleted() != nil:
		return r.takeCompletion(said.GetCompleted())
	default:
		return false, nil
	}
}

func (r *reading) takeEnd(finished *v1.ChoiceFinished) bool {
	if finished == nil || r.finished[finished.GetChoice()] != nil {
		return false
	}
	if r.finished == nil {
		r.finished = map[uint32]*v1.ChoiceFinished{}
	}
	r.finished[finished.GetChoice()] = finished
	return true
}

func (r *reading) takeAcceptance(accepted *v1.Accepted) (bool, *Error) {
	if r.generationID != "" && accepted.GetGenerationId() != r.generationID {
		return false, dataLoss("generation %s came back as %s", r.generationID, accepted.GetGenerationId())
	}
	isNew := r.accepted == nil
	r.generationID, r.accepted = accepted.GetGenerationId(), accepted
	return isNew, nil
}

func (r *reading) takeCompletion(completed *v1.Completed) (bool, *Error) {
	if due := completed.GetUsage().GetOutputTokens(); r.position() < due {
		return false, dataLoss("the stream is complete with %d of %d tokens", r.position(), due)
	}
	isNew := r.completed == nil
	r.completed = completed
	return isNew, nil
}
