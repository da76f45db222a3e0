package llamaherd

import (
	"context"
	"math"
	"math/rand"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	firstWait   = 50 * time.Millisecond
	longestWait = 2 * time.Second
	avoidFor    = 5 * time.Second // how long a gateway that failed is asked after the others
	stoodFor    = 5 * time.Second // an attempt that took so long had reached the service: its failure is the first of a series
)

const nobody = -1 // no gateway's number

// targets are the gateways of one client, shared by all its calls: these take turns, and go around those that just failed.
type targets struct {
	now    func() time.Time
	mutex  sync.Mutex
	failed []time.Time // when each gateway did last
	turn   int
	random *rand.Rand // the package's own draws the same numbers in every process (Go 1.19)
}

func newTargets(num int, now func() time.Time) *targets {
	random := rand.New(rand.NewSource(time.Now().UnixNano()))
	return &targets{now: now, failed: make([]time.Time, num), turn: random.Intn(num), random: random}
}

// pick is the number of the gateway to ask next; another than `last`, which just failed, if there is one.
func (t *targets) pick(last int) int {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	num, badSince := len(t.failed), t.now().Add(-avoidFor)
	picked := nobody
	for n := range t.failed {
		target := (t.turn + n) % num
		if picked == nobody || t.isBetter(target, picked, last, badSince) {
			picked = target
		}
	}
	t.turn = (t.turn + 1) % num
	return picked
}

// isBetter tells whether `target` goes before `other`; of equals, the one whose turn it is stays.
func (t *targets) isBetter(target, other, last int, badSince time.Time) bool {
	if (target == last) != (other == last) {
		return other == last
	}
	failed, otherFailed := t.failed[target], t.failed[other]
	return failed.Before(otherFailed) && otherFailed.After(badSince)
}

// avoid has others asked first for a while: the target broke or it drains.
func (t *targets) avoid(target int) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.failed[target] = t.now()
}

// shorten takes up to half of a wait away, so that clients of a gateway that died do not return in step.
func (t *targets) shorten(wait time.Duration) time.Duration {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	return wait/2 + time.Duration(t.random.Int63n(int64(wait/2)+1))
}

// tries are the attempts at one call, all under the deadline of its context.
type tries struct {
	targets      *targets
	patience     time.Duration
	deadline     time.Time // of all of them; zero is none
	attempt      time.Time // when the one at hand began
	failingSince time.Time // the first failure of a series; zero is none
	backoff      time.Duration
	target       int
	hasFailed    bool
	isOutOfTime  bool // given up, since another attempt would begin after the deadline
}

func newTries(ctx context.Context, targets *targets, patience time.Duration) *tries {
	deadline, _ := ctx.Deadline()
	return &tries{targets: targets, patience: patience, deadline: deadline, backoff: firstWait, target: nobody}
}

// nextTarget is the number of the gateway to ask now.
func (t *tries) nextTarget() int {
	last := nobody
	if t.hasFailed {
		last = t.target
	}
	t.target = t.targets.pick(last)
	t.attempt = t.targets.now()
	return t.target
}

// progressed says that something new came: the next failure is a first one.
func (t *tries) progressed() {
	t.failingSince = time.Time{}
	t.backoff = firstWait
}

// failed is how long to wait before the next attempt, and whether there is to be one.
func (t *tries) failed(err *Error) (time.Duration, bool) {
	if err.isOfGateway() && t.target != nobody {
		t.targets.avoid(t.target)
	}
	t.hasFailed = true
	if !err.mayRetry() {
		return 0, false
	}
	now := t.targets.now()
	if t.failingSince.IsZero() || now.Sub(t.attempt) >= stoodFor {
		t.failingSince = now
	}
	wait := t.targets.shorten(t.backoff)
	if err.RetryAfter != nil && *err.RetryAfter > wait {
		wait = *err.RetryAfter
	}
	t.backoff = time.Duration(math.Min(float64(2*t.backoff), float64(longestWait)))
	again := now.Add(wait)
	t.isOutOfTime = !t.deadline.IsZero() && again.After(t.deadline)
	return wait, !t.isOutOfTime && !again.After(t.failingSince.Add(t.patience))
}

// wait sleeps until the next attempt. It gives the error if there is to be none.
func (t *tries) wait(ctx context.Context, err *Error) error {
	wait, again := t.failed(err)
	if !again {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// ended is the error of a call whose context has ended.
func ended(ctx context.Context) *Error {
	err := &Error{Kind: Cancelled, Code: codes.Canceled, Text: "the caller has left", cause: ctx.Err()}
	if ctx.Err() == context.DeadlineExceeded {
		err.Kind, err.Code, err.Text = DeadlineExceeded, codes.DeadlineExceeded, "the deadline has passed"
	}
	return err
}
