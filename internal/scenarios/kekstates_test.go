package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
)

// kekStates are ways in which a KEK does not do its work, with what Status says of each.
var kekStates = []struct {
	err   error
	state keyring.KEKState
	kind  keyring.ProblemKind
	text  string
}{
	{errors.New("no such host"), keyring.KEKUnavailable, keyring.ProblemKEKAway, "KEK a does not answer\n"},
	{fmt.Errorf("403: %w", keyring.ErrKEKRefused), keyring.KEKRefuses, keyring.ProblemKEKRefuses, "KEK a refuses\n"},
	{fmt.Errorf("429: %w", keyring.ErrKEKThrottled), keyring.KEKThrottled, keyring.ProblemKEKThrottled, "KEK a is throttled\n"},
}

// problem returns the problem of that kind, if there is one.
func problem(st keyring.Status, kind keyring.ProblemKind) (p keyring.Problem, ok bool) {
	i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == kind })
	if i < 0 {
		return p, false
	}
	return st.Problems[i], true
}

// TestKEKThatKeepsTheFirstKeyFromBeingMadeIsNamed, by WaitReady and by Status: what it does, and what to do about it.
func TestKEKThatKeepsTheFirstKeyFromBeingMadeIsNamed(t *testing.T) {
	t.Parallel()
	for _, c := range kekStates {
		synctest.Test(t, func(t *testing.T) {
			a := kektest.New("a")
			a.Set(func(k *kektest.KMS) { k.Err = c.err })
			l := newLone(t, a)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := l.Keyring.WaitReady(ctx); !errors.Is(err, keyring.ErrNotReady) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), "KEK a") {
				t.Errorf("WaitReady: %v", err)
			}
			st := l.status()
			if len(st.KEKs) != 1 || st.KEKs[0].State != c.state || !strings.Contains(st.String(), c.text) {
				t.Errorf("%+v in\n%s", st.KEKs, st)
			}
			if p, ok := problem(st, c.kind); !ok || p.KEK != "a" || p.Advice == "" {
				t.Errorf("%v", st.Problems)
			}
			if p, ok := problem(st, keyring.ProblemNoNewKey); !ok || p.KEK != "a" {
				t.Errorf("no key can be made: %v", st.Problems)
			}
			a.Set(kektest.Answers)
			if !l.readyWithin(2 * time.Minute) {
				t.Fatalf("when it works: %v", l.status().Problems)
			}
			time.Sleep(2 * time.Minute) // virtual
			if st := l.status(); len(butNoBackup(st.Problems)) > 0 || st.KEKs[0].State != keyring.KEKWorks {
				t.Errorf("when it works: %+v, %v", st.KEKs, st.Problems)
			}
		})
	}
}

// TestFollowerSaysWhoKnowsWhyThereIsNoKey: only the leader can tell why no key can be made.
func TestFollowerSaysWhoKnowsWhyThereIsNoKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			a := &smallOnly{KMS: kektest.New("a")}
			a.most.Store(64)
			cfg.KEKs = []keyring.KEK{a}
		}})
		time.Sleep(2 * time.Minute) // virtual
		for _, s := range c.Servers {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := s.Keyring.WaitReady(ctx)
			cancel()
			_, leader := s.Raft.LeaderWithID()
			want := "the Status of the leader, " + string(leader)
			if leader == s.ID {
				want = "KEK a"
			}
			if !errors.Is(err, keyring.ErrNotReady) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, while %s leads: %v", s.ID, leader, err)
			}
		}
	})
}

// TestRotationThatFailsForLongIsAProblem that names the KEK, although a probe of it works: what it refuses is the key.
func TestRotationThatFailsForLongIsAProblem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &smallOnly{KMS: kektest.New("a")}
		l := newLone(t, a)
		l.every = time.Hour
		l.restart(a)
		l.seal("data")
		a.most.Store(64)
		if st := l.status(); st.NextRotation.IsZero() || len(butNoBackup(st.Problems)) > 0 {
			t.Fatalf("%v", st.Problems)
		}
		time.Sleep(time.Until(l.status().NextRotation) + 10*time.Minute) // virtual
		if p, ok := problem(l.status(), keyring.ProblemNoNewKey); !ok || p.KEK != "a" || !strings.Contains(p.Detail, "too long") {
			t.Errorf("%v", l.status().Problems)
		}
		a.most.Store(0)
		time.Sleep(3 * time.Minute) // virtual
		if st := l.status(); len(butNoBackup(st.Problems)) > 0 {
			t.Errorf("when it wraps again: %v", st.Problems)
		}
	})
}

// smallOnly is a KMS that wraps no more than so many bytes, if that is set.
type smallOnly struct {
	*kektest.KMS
	most atomic.Int64
}

func (k *smallOnly) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if most := k.most.Load(); most > 0 && int64(len(plaintext)) > most {
		return nil, errors.New("plaintext too long")
	}
	return k.KMS.Wrap(ctx, plaintext, aad)
}

// TestOldKEKThatIsGoneIsNamed although nothing needs it: it will be needed by who restores an old disk. It is found at Open,
// and later within minutes.
func TestOldKEKThatIsGoneIsNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old := kektest.New("old")
		l := newLone(t, kektest.New("a"))
		l.old = []keyring.KEK{old}
		l.Cluster.Restart(l.Server)
		sealed := l.seal("data")
		if st := l.status(); len(butNoBackup(st.Problems)) > 0 {
			t.Errorf("it works: %v", st.Problems)
		}
		old.Set(kektest.Outages["fails"])
		time.Sleep(11 * time.Minute) // virtual
		if st := l.status(); !named(st, "old") || !st.Ready {
			t.Errorf("ready %v, %v", st.Ready, st.Problems)
		}
		l.Cluster.Restart(l.Server)
		if st := l.status(); !named(st, "old") {
			t.Errorf("at the start: %v", st.Problems)
		}
		l.opens(sealed)
		old.Set(kektest.Answers)
		time.Sleep(2 * time.Minute) // virtual
		if st := l.status(); len(butNoBackup(st.Problems)) > 0 {
			t.Errorf("when it works again: %v", st.Problems)
		}
	})
}
