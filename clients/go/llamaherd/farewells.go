package llamaherd

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const farewellTimeout = 3 * time.Second // of each call of a farewell

// farewell ends what a caller has started and does not wait for any more, while the caller goes on.
type farewell struct {
	done chan struct{}
	err  error // once done
}

// farewells are those under way.
type farewells struct {
	mutex    sync.Mutex
	underWay map[*farewell]bool
}

// begin has a farewell said in the background. Whatever ends the context has no part in it: it may just have ended.
func (f *farewells) begin(ctx context.Context, say func(context.Context) error) *farewell {
	begun := &farewell{done: make(chan struct{})}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.underWay == nil {
		f.underWay = map[*farewell]bool{}
	}
	f.underWay[begun] = true
	go func() {
		if err := say(detached{ctx}); !errors.Is(err, NotFound) { // what is not there any more has ended
			begun.err = err
		}
		close(begun.done)
		f.mutex.Lock()
		defer f.mutex.Unlock()
		delete(f.underWay, begun)
	}()
	return begun
}

// wait returns once those are said that are under way now.
func (f *farewells) wait() {
	f.mutex.Lock()
	var all []*farewell
	for each := range f.underWay {
		all = append(all, each)
	}
	f.mutex.Unlock()
	for _, each := range all {
		<-each.done
	}
}

// leaver is a call that is left, and ends what it has started, when its client ends.
type leaver interface{ cut() }

// running are those whose callers wait.
type running struct {
	mutex    sync.Mutex
	all      map[leaver]bool
	hasEnded bool
}

// add is false once the client ends: then nothing may begin.
func (r *running) add(each leaver) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.hasEnded {
		return false
	}
	if r.all == nil {
		r.all = map[leaver]bool{}
	}
	r.all[each] = true
	return true
}

func (r *running) remove(each leaver) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	delete(r.all, each)
}

// cut tells them that the client ends.
func (r *running) cut() {
	r.mutex.Lock()
	r.hasEnded = true
	all := r.all
	r.all = nil
	r.mutex.Unlock()
	for each := range all {
		each.cut()
	}
}

// answering is a call whose caller waits for all of its answer.
type answering struct {
	end   context.CancelFunc // of the call
	leave func()             // has what it started ended
	once  sync.Once
	isCut atomic.Bool
}

// answerOrEnd is answer, for a call that starts something: say ends that if nobody waits for it any more.
func answerOrEnd[T any](
	ctx context.Context, c *calls, once ask[T], say func(context.Context) error,
) (response T, err error) {
	waiting, end := context.WithCancel(ctx)
	defer end()
	this := &answering{end: end, leave: func() { c.farewells.begin(ctx, say) }}
	if !c.running.add(this) {
		return response, closed()
	}
	defer c.running.remove(this)
	response, err = answer(waiting, c, once)
	switch {
	case err == nil:
	case this.isCut.Load():
		err = closed()
	case endsWhatItStarted(err, false):
		this.once.Do(this.leave)
	}
	return response, err
}

func (a *answering) cut() {
	a.isCut.Store(true)
	a.once.Do(a.leave)
	a.end()
}

// endsWhatItStarted tells whether a call that failed so ends its generation too: its caller has left, or the time is over
// and its caller has no way to come back. After any other failure it is left as it is, for another to attach.
func endsWhatItStarted(err error, mayComeBack bool) bool {
	var failure *Error
	if errors.As(err, &failure) && failure.Kind == DeadlineExceeded {
		return !mayComeBack
	}
	return errors.Is(err, context.Canceled)
}

// detached has the values of a context whose end does not matter: a farewell is said after it.
type detached struct{ context.Context }

func (detached) Deadline() (time.Time, bool) { return time.Time{}, false }
func (detached) Done() <-chan struct{}       { return nil }
func (detached) Err() error                  { return nil }
