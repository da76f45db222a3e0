package llamaherd

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	v1 "llamaherd.dev/llamaherd/v1"
)

// Stream is one generation, or one turn of a conversation, for one goroutine:
//
//	defer stream.Close()
//	for stream.Next() {
//		fmt.Print(stream.Delta().Text)
//	}
//	return stream.Err()
//
// It survives the loss of connections and gateways: no token is lost, none comes twice.
type Stream struct {
	ctx     context.Context
	calls   *calls
	tries   *tries
	before  *Stream         // of a conversation: the turn before, which has to be ended first
	life    context.Context // of its calls and waits, from the first Next on
	call    *call           // the one at hand, if there is one
	pending []Delta
	delta   Delta
	err     error

	mutex   sync.Mutex // of what its client's end needs too; whoever is left changes none of it
	reading *reading   // who reads may look without
	source  source
	end     context.CancelFunc // of life
	isCut   bool               // by its client's end
	left    *farewell          // to what the stream has started
}

// source is where a reading comes from.
type source interface {
	// next is the call that goes on from where the reading stands.
	next() ask[*call]
	// failed is the error to act on, for one that the call at hand ended with.
	failed(*Error) *Error
	// mayRun tells whether what the source has started may still be running, and is its reader's to end.
	mayRun() bool
	// isKnown tells whether the service has told of it, so that it can be ended for certain.
	isKnown() bool
	// mayComeBack tells whether its caller can find it again, so that a deadline alone ends nothing.
	mayComeBack() bool
	// farewell ends it.
	farewell(context.Context) error
}

// call is one call that streams.
type call struct {
	receive func() (response, error)
	trailer func() metadata.MD
	cancel  context.CancelFunc
}

func newStream(ctx context.Context, calls *calls, reading *reading, source source) *Stream {
	return &Stream{ctx: ctx, calls: calls, reading: reading, source: source, tries: calls.tries(ctx)}
}

// Next waits for the next delta. It is false at the end, and after an error; Err tells which.
func (s *Stream) Next() bool {
	s.endBefore()
	for len(s.pending) == 0 {
		if s.isOver() {
			s.finish()
			return false
		}
		if err := s.goOn(); err != nil {
			s.fail(err)
		}
	}
	s.delta, s.pending = s.pending[0], s.pending[1:]
	return true
}

// Delta is what the last Next has brought.
func (s *Stream) Delta() Delta { return s.delta }

// Err is why the stream ended before it was complete: an *Error, or nil.
func (s *Stream) Err() error { return s.err }

// Close leaves the stream, and returns once the service knows, within a few seconds. What the stream started is ended,
// unless it is complete or has failed; where the end of its context has begun that already, Close waits for it. The error
// says that it could not be ended, and ends by its resume window.
func (s *Stream) Close() error {
	s.pending = nil
	s.mutex.Lock()
	s.leave()
	left := s.left
	s.mutex.Unlock()
	s.finish()
	if left == nil {
		return nil
	}
	<-left.done
	return left.err
}

// GenerationID is for Attach, Get and Cancel; empty before `accepted`, and for a turn.
func (s *Stream) GenerationID() string { return s.reading.generationID }

// Accepted tells the prompt's tokens, and the settings used with every default and the seed filled in.
func (s *Stream) Accepted() *v1.Accepted { return s.reading.accepted }

// Position is that of the next token, over all choices: where another reader would go on. A response may hold tokens of
// several choices, and so several deltas: this counts all of them.
func (s *Stream) Position() uint32 { return s.reading.position() }

// Chain proves all tokens before Position; it goes into Attach with it. Nil if it is not known.
func (s *Stream) Chain() *uint32 {
	chain := s.reading.chain()
	if chain == nil {
		return nil
	}
	value := *chain
	return &value
}

// Attempts is how many workers have had the generation so far.
func (s *Stream) Attempts() uint32 { return s.reading.attempts }

// Finished tells how each choice ended, of those that have. It is the stream's own.
func (s *Stream) Finished() map[uint32]*v1.ChoiceFinished { return s.reading.finished }

// Completed has counts, times and attempts, once everything has come.
func (s *Stream) Completed() *v1.Completed { return s.reading.completed }

// Turn is, of a conversation's turn that is complete, its number, and how many of the oldest turns were left out.
func (s *Stream) Turn() *v1.TurnFinished { return s.reading.turn }

// isOver tells whether nothing is left to wait for: of a complete stream, neither is the status of its call.
func (s *Stream) isOver() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.isCut && s.err == nil && s.reading.completed == nil {
		s.err = closed()
	}
	return s.err != nil || s.reading.isLeft || s.reading.completed != nil && s.call == nil
}

func (s *Stream) endBefore() {
	if s.before != nil {
		_ = s.before.Close() // what could not be ended ends by its resume window
		s.before = nil
	}
}

// goOn takes one response of the call at hand, and makes a call before if there is none.
func (s *Stream) goOn() *Error {
	if s.call == nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	said, err := s.call.receive()
	switch {
	case err == io.EOF && s.reading.completed == nil:
		return broken("the stream ended before `completed`")
	case err == io.EOF:
		s.hangUp()
		return nil
	case err != nil:
		return typed(s.ctx, err, s.call.trailer())
	}
	news, failure := s.take(said)
	if news.isAny {
		s.tries.progressed()
	}
	s.pending = append(s.pending, deltasOf(news)...)
	return failure
}

func (s *Stream) take(said response) (news, *Error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.reading.isLeft {
		return news{}, closed()
	}
	return s.reading.take(said)
}

func (s *Stream) begin() *Error {
	if !s.live() {
		return closed()
	}
	if s.ctx.Err() != nil {
		return ended(s.ctx)
	}
	gateway, err := s.calls.next(s.tries)
	if err != nil {
		return typed(s.ctx, err, nil)
	}
	next := s.next()
	ctx, cancel := context.WithCancel(s.life)
	s.call, err = next(ctx, gateway)
	if err != nil {
		cancel()
		s.call = nil
		return typed(s.ctx, err, nil)
	}
	s.call.cancel = cancel
	return nil
}

// live begins the stream, unless it has begun. It is false once the client ends.
func (s *Stream) live() bool {
	if s.life != nil {
		return true
	}
	s.life, s.end = context.WithCancel(s.calls.how.outgoing(s.ctx))
	return s.calls.running.add(s)
}

func (s *Stream) next() ask[*call] {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.reading.isLeft {
		return func(context.Context, *gateway, ...grpc.CallOption) (*call, error) { return nil, closed() }
	}
	return s.source.next()
}

// fail waits if there is to be another call; otherwise the stream has failed.
func (s *Stream) fail(err *Error) {
	s.hangUp()
	if s.reading.completed != nil {
		return // everything has come: nothing more was to be said
	}
	failure := s.tries.wait(s.life, s.failed(err))
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case failure == nil || s.reading.isLeft: // by the client's end, which is what there is to tell then
	case s.endsWith(failure):
		s.err = failure
		s.leave()
	default:
		s.err = failure
		s.reading.isLeft = true // as it is, for another to attach
	}
}

// endsWith tells whether a stream that fails so ends what it started: also if it gave up since its deadline is too near.
func (s *Stream) endsWith(failure error) bool {
	mayComeBack := s.source.mayComeBack()
	return s.tries.isOutOfTime && s.source.isKnown() && !mayComeBack || endsWhatItStarted(failure, mayComeBack)
}

func (s *Stream) failed(err *Error) *Error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.reading.isLeft {
		return err
	}
	return s.source.failed(err)
}

// cut leaves the stream because its client ends: whoever reads it is told so.
func (s *Stream) cut() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.isCut = true
	s.leave()
	s.end()
}

// leave reads no more, and has what the stream started ended. Whoever calls it has the mutex.
func (s *Stream) leave() {
	isOurs := s.reading.goesOn() && s.source.mayRun()
	s.reading.isLeft = true
	if isOurs {
		s.left = s.calls.farewells.begin(s.ctx, s.source.farewell)
	}
}

// finish gives back what a stream has that nobody reads any more.
func (s *Stream) finish() {
	s.hangUp()
	if s.life != nil {
		s.calls.running.remove(s)
		s.end()
	}
}

func (s *Stream) hangUp() {
	if s.call != nil {
		s.call.cancel()
		s.call = nil
	}
}
