package llamaherd

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// clock stands still until it is moved.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Unix(1000, 0)} }

func (c *clock) read() time.Time { return c.now }

func unavailable(retryAfter *time.Duration) *Error {
	return &Error{Kind: Overloaded, Code: codes.Unavailable, RetryAfter: retryAfter}
}

func TestAnotherGatewayIsAskedFirst(t *testing.T) {
	clock := newClock()
	targets := newTargets(3, clock.read)
	tries := newTries(context.Background(), targets, time.Minute)
	first := tries.nextTarget()
	tries.failed(broken("gone"))
	if tries.nextTarget() == first {
		t.Error("the one that just failed")
	}
	for n := 0; n < 6; n++ {
		if newTries(context.Background(), targets, time.Minute).nextTarget() == first {
			t.Error("another call asks the one that failed")
		}
	}
	clock.now = clock.now.Add(avoidFor)
	asked := map[int]bool{}
	for n := 0; n < 3; n++ {
		asked[newTries(context.Background(), targets, time.Minute).nextTarget()] = true
	}
	if len(asked) != 3 {
		t.Errorf("after a while all take turns again: %v", asked)
	}
}

func TestAFullQueueIsNoFaultOfItsGateway(t *testing.T) {
	targets := newTargets(2, newClock().read)
	tries := newTries(context.Background(), targets, time.Minute)
	tries.nextTarget()
	tries.failed(unavailable(nil))
	for n, failed := range targets.failed {
		if !failed.IsZero() {
			t.Errorf("%d is avoided", n)
		}
	}
}

func TestWaitsDoubleAndAreShortenedByChance(t *testing.T) {
	tries := newTries(context.Background(), newTargets(1, newClock().read), time.Hour)
	for _, longest := range []time.Duration{firstWait, 2 * firstWait, 4 * firstWait} {
		if wait, again := tries.failed(unavailable(nil)); !again || wait < longest/2 || wait > longest {
			t.Errorf("%v, at most %v", wait, longest)
		}
	}
	for n := 0; n < 10; n++ {
		if wait, _ := tries.failed(unavailable(nil)); wait > longestWait {
			t.Error(wait)
		}
	}
	tries.progressed()
	if wait, _ := tries.failed(unavailable(nil)); wait > firstWait {
		t.Errorf("%v after something new came", wait)
	}
}

func TestTheServiceSaysWhenToComeBack(t *testing.T) {
	tries := newTries(context.Background(), newTargets(1, newClock().read), time.Minute)
	later := 3 * time.Second
	if wait, again := tries.failed(unavailable(&later)); !again || wait != later {
		t.Error(wait, again)
	}
	forbidding := unavailable(nil)
	forbidding.ForbidsRetry = true
	if _, again := tries.failed(forbidding); again {
		t.Error("it asked not to be asked again")
	}
}

func TestNobodyWaitsBeyondDeadlineOrPatience(t *testing.T) {
	clock := newClock()
	for name, each := range map[string]struct {
		timeout, patience, wait time.Duration
		again                   bool
	}{
		"in time":             {3 * time.Second, time.Minute, 2 * time.Second, true},
		"beyond the deadline": {3 * time.Second, time.Minute, 4 * time.Second, false},
		"beyond the patience": {time.Minute, 3 * time.Second, 4 * time.Second, false},
		"without patience":    {time.Minute, 0, 0, false},
	} {
		ctx, cancel := context.WithDeadline(context.Background(), clock.now.Add(each.timeout))
		defer cancel()
		tries := newTries(ctx, newTargets(1, clock.read), each.patience)
		if _, again := tries.failed(unavailable(&each.wait)); again != each.again {
			t.Errorf("%s: %v", name, again)
		}
	}
}

func TestAnAttemptThatStoodBeginsASeries(t *testing.T) {
	clock := newClock()
	tries := newTries(context.Background(), newTargets(1, clock.read), 6*time.Second)
	for n := 0; n < 3; n++ {
		tries.nextTarget()
		clock.now = clock.now.Add(stoodFor)
		if _, again := tries.failed(broken("cut")); !again {
			t.Error("each attempt had reached the service")
		}
	}
	for n := 0; n < 2; n++ {
		tries.nextTarget()
		clock.now = clock.now.Add(4 * time.Second)
		if _, again := tries.failed(broken("cut")); again != (n == 0) {
			t.Errorf("%d: %v after 4 s more", n, again)
		}
	}
}
