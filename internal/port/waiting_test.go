package port

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// lines counts the lines of a log.
type lines struct{ all []string }

func (l *lines) Write(b []byte) (int, error) {
	l.all = append(l.all, string(b))
	return len(b), nil
}

// TestStartSaysEachCauseOnceAndThenSeldom: it asks the others every other second, and the log is not for that.
func TestStartSaysEachCauseOnceAndThenSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log lines
		w := NewWaiting(hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn}))
		ask := func(d time.Duration, why func(i int) error) {
			for i, end := 0, time.Now().Add(d); time.Now().Before(end); i++ {
				w.Failed(t.Context(), "s2@h:1", why(i))
				w.Say("waiting")
				w.Again(t.Context())
			}
		}
		refused := func(int) error { return errors.New("nothing listens there") }
		ask(14*time.Second, refused)
		if len(log.all) != 1 || !strings.Contains(log.all[0], `s2@h:1: nothing listens there`) {
			t.Errorf("%q", log.all)
		}
		ask(time.Hour, refused)
		if n := len(log.all); n < 6 || n > 14 {
			t.Errorf("%d lines in an hour", n)
		}
		before := len(log.all)
		ask(3*time.Second, func(int) error { return errors.New("another CA") })
		if len(log.all) != before+1 {
			t.Errorf("a new cause has %d lines", len(log.all)-before)
		}
		before = len(log.all)
		ask(5*time.Minute, func(i int) error { return fmt.Errorf("cause %d", i%2) })
		if n := len(log.all) - before; n < 2 || n > 6 {
			t.Errorf("two causes that take turns have %d lines", n)
		}
		w.Helped("s2@h:1")
		before = len(log.all)
		w.Say("waiting")
		if len(log.all) != before {
			t.Errorf("it waits for nobody, and says %q", log.all[before])
		}
	})
}

// TestLastReasonOutlivesTheContext: that ctx has ended is no reason why a server does not answer.
func TestLastReasonOutlivesTheContext(t *testing.T) {
	t.Parallel()
	w := NewWaiting(hclog.NewNullLogger())
	w.Failed(t.Context(), "s2@h:1", errors.New("another CA"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	w.Failed(ended, "s2@h:1", ended.Err())
	w.Failed(ended, "s3@h:1", ended.Err())
	if err := w.Err(); err.Error() != "s2@h:1: another CA; s3@h:1: context canceled" || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestStartAsksOftenAtFirst: a cluster that elects a leader needs seconds, and a server must not be later than it.
func TestStartAsksOftenAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, began := NewWaiting(hclog.NewNullLogger()), time.Now()
		rounds := 0
		for ; time.Since(began) < 30*time.Second; rounds++ {
			if !w.Again(t.Context()) {
				t.Fatal("it has ended")
			}
		}
		late := time.Now()
		if w.Again(t.Context()); rounds != 120 || time.Since(late) != 2*time.Second {
			t.Errorf("%d rounds in 30 seconds, then one after %v", rounds, time.Since(late))
		}
	})
}
