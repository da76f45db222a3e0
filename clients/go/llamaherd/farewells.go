package llamaherd

import (
	"context"
	"errors"
	"sync"
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
