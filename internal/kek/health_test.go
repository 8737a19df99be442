package kek_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
	"filippo.io/age"
)

// What a KEK says that answers, and does not do its work.
var (
	errRefused   = fmt.Errorf("403: %w", kek.ErrRefused)
	errThrottled = fmt.Errorf("429: %w", kek.ErrThrottled)
)

// fails returns a change with which every call of a KMS fails.
func fails(err error) func(*kektest.KMS) { return func(k *kektest.KMS) { k.Err = err } }

// stateOf is what a set says of a KEK.
func stateOf(s *kek.Set, id string) (state kek.State) {
	for _, st := range s.Status() {
		if st.ID == id {
			state = st.State
		}
	}
	return state
}

func TestStatesAreToldApart(t *testing.T) {
	t.Parallel()
	for want, change := range map[kek.State]func(*kektest.KMS){
		kek.Works: kektest.Answers, kek.Refuses: fails(errRefused), kek.Throttled: fails(errThrottled), kek.Unavailable: fails(errors.New("no such host")),
		kek.Wrong: func(k *kektest.KMS) { k.NoUnwrap = seal.ErrOpen }, // it wraps for another one
	} {
		synctest.Test(t, func(t *testing.T) {
			a, old := kektest.New("a"), kektest.New("old")
			set := kek.NewSet([]kek.KEK{a}, []kek.KEK{old})
			a.Set(change)
			old.Set(func(k *kektest.KMS) { k.NoWrap = errRefused }) // it only unwraps any more
			set.Probe(t.Context())
			if got := stateOf(set, "a"); got != want || stateOf(set, "old") != kek.Works {
				t.Errorf("it %s, the old one %s; want %s", got, stateOf(set, "old"), want)
			}
			_, err := set.Decode(t.Context(), encoded(t, kektest.New("a")))
			if e := (*kek.Error)(nil); want != kek.Works && (!errors.As(err, &e) || e.State != want || !e.Skipped) {
				t.Errorf("%s: %+v", want, err)
			}
		})
	}
	set := kek.NewSet([]kek.KEK{kektest.NewVault(t, 1)}, nil)
	for want, k := range map[kek.State]kek.KEK{kek.Unconfigured: kektest.New("b"), kek.Wrong: kektest.NewVault(t, 2)} {
		_, err := set.Decode(t.Context(), encoded(t, k))
		if e := (*kek.Error)(nil); !errors.As(err, &e) || e.State != want || stateOf(set, "vault") != kek.Works {
			t.Errorf("%s: %+v, and it %s", want, err, stateOf(set, "vault"))
		}
	}
}

// decodeAll has a set open a file many times, 16 at a time, as a keystore does with its files.
func decodeAll(t *testing.T, set *kek.Set, file *nks.File, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range n / 16 {
				set.Decode(t.Context(), file)
			}
		})
	}
	wg.Wait()
}

// TestKEKThatFailsIsNotAskedForEachFile: after the first failures there is one probe at a time for all of them.
func TestKEKThatFailsIsNotAskedForEachFile(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*kektest.KMS){
		"refuses": fails(errRefused), "is throttled": fails(errThrottled), "fails": kektest.Outages["fails"], "hangs": kektest.Outages["hangs"],
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := kektest.New("a")
				set := kek.NewSet([]kek.KEK{a}, nil)
				file := encoded(t, a)
				before := a.Calls()
				a.Set(change)
				decodeAll(t, set, file, 1600)
				if n := a.Calls() - before; n > 16+1 || set.Down() == nil {
					t.Errorf("%d calls for 1600 files, down: %v", n, set.Down())
				}
				before = a.Calls()
				for range 3600 { // as if each second somebody wanted it
					time.Sleep(time.Second) // virtual
					var wg sync.WaitGroup
					for range 4 {
						wg.Go(func() { set.Probe(t.Context()) })
					}
					wg.Wait()
				}
				if n := a.Calls() - before; n < 3600/40 || n > 3600/15+10 {
					t.Errorf("%d calls in an hour", n)
				}
				a.Set(kektest.Answers)
				time.Sleep(30 * time.Second) // virtual
				if set.Probe(t.Context()); set.Down() != nil {
					t.Errorf("when it works again: %v", set.Down())
				}
			})
		})
	}
}

// TestManyRefusalsAtATimeAreOne: the next probe is due after a second, however many calls were throttled together.
func TestManyRefusalsAtATimeAreOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.New("a")
		set := kek.NewSet([]kek.KEK{late{a}}, nil)
		set.Probe(t.Context())
		a.Set(fails(errThrottled))
		file := encoded(t, kektest.New("a"))
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { set.Decode(t.Context(), file) })
		}
		wg.Wait()
		if next := set.NextProbe(); !isDown(set, "a") || next > time.Second {
			t.Errorf("down: %v, probed after %v", isDown(set, "a"), next)
		}
	})
}

// late is a KEK whose calls are on their way for a while.
type late struct{ kek.KEK }

func (k late) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	time.Sleep(time.Second) // virtual
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// TestOneBadFileTakesNoKEKDown: a KMS may refuse what another one has wrapped, and say no more. The probe shows that it works.
func TestOneBadFileTakesNoKEKDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, old := range []bool{false, true} {
			vault := kektest.NewVault(t, 1)
			picky := kektest.Picky{KEK: vault}
			set := kek.NewSet([]kek.KEK{picky}, nil)
			if old {
				set = kek.NewSet([]kek.KEK{kektest.New("new")}, []kek.KEK{picky})
			}
			good, bad := encoded(t, picky), encoded(t, kektest.NewVault(t, 2))
			for range 20 {
				if _, err := set.Decode(t.Context(), bad); err == nil || set.Down() != nil {
					t.Fatalf("%v, down: %v", err, set.Down())
				}
				if _, err := set.Decode(t.Context(), good); err != nil {
					t.Fatal(err)
				}
				vault.Set(func(k *kektest.KMS) { k.NoWrap = errRefused }) // now there is a file that it has opened
				if !old {
					vault.Set(kektest.Answers)
				}
			}
			if n := vault.Calls(); n > 20*4+10 {
				t.Errorf("old %v: %d calls", old, n)
			}
		}
	})
}

// TestOldKEKIsProbedWithWhatItHasWrapped: it may know by itself what it has not wrapped, so that no other question is
// asked of the KMS, and it may not wrap any more.
func TestOldKEKIsProbedWithWhatItHasWrapped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old := kektest.New("old")
		file := encoded(t, old)
		old.Set(func(k *kektest.KMS) { k.NoWrap = errors.New("400") })
		set := kek.NewSet([]kek.KEK{kektest.New("a")}, []kek.KEK{old})
		set.Show(file)
		if set.Probe(t.Context()); set.Down() != nil {
			t.Errorf("it unwraps: %v", set.Down())
		}
		time.Sleep(11 * time.Minute) // virtual
		old.Set(fails(errors.New("no such host")))
		if set.NextProbe() > 0 {
			t.Error("it is not probed again")
		}
		if set.Probe(t.Context()); stateOf(set, "old") != kek.Unavailable {
			t.Errorf("it is gone, and %s", stateOf(set, "old"))
		}
	})
}

// TestProbesOfSeveralKEKsWaitForTheSlowestOnly.
func TestProbesOfSeveralKEKsWaitForTheSlowestOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b, old := kektest.New("a"), kektest.New("b"), kektest.New("old")
		for _, k := range []*kektest.KMS{a, b, old} {
			k.Set(kektest.Outages["hangs"])
		}
		began := time.Now()
		kek.NewSet([]kek.KEK{a, b}, []kek.KEK{old}).Probe(t.Context())
		if d := time.Since(began); d != 10*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestAgeKEKThatCanNotWrapIsFound: its plugin may be gone since it was made.
func TestAgeKEKThatCanNotWrapIsFound(t *testing.T) {
	r := &flaky{Recipient: kektest.Identity(t).Recipient()}
	k, err := kek.Age([]age.Recipient{r})
	if err != nil {
		t.Fatal(err)
	}
	set := kek.NewSet([]kek.KEK{kek.Inline(), k}, nil)
	r.err = errors.New("executable file not found in $PATH")
	if set.Probe(t.Context()); stateOf(set, k.ID()) != kek.Refuses {
		t.Errorf("it %s", stateOf(set, k.ID()))
	}
}
