package keyring_test

import (
	"context"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
)

// hangingHost is a host one of whose functions does not return until end is called.
type hangingHost struct {
	on   atomic.Bool
	back chan struct{}
}

func (h *hangingHost) hang() {
	if h.on.Load() {
		<-h.back
	}
}

func (h *hangingHost) end() { h.on.Store(false); close(h.back) }

func (h *hangingHost) SetGauge(string, float64, map[string]string)   { h.hang() }
func (h *hangingHost) AddCounter(string, float64, map[string]string) {}
func (h *hangingHost) Write(b []byte) (int, error)                   { h.hang(); return len(b), nil }
func (h *hangingHost) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(func(keyring.Sealed, error) bool) { h.hang() }
}
func (h *hangingHost) Replace(context.Context, []keyring.Replacement) (int, error) { return 0, nil }

// hangingFunctions are the host's functions, each set to hang, with what makes the keyring call it if it does not do so by itself.
var hangingFunctions = map[string]struct {
	set  func(cfg *keyring.Config, h *hangingHost)
	call func(ctx context.Context, t *testing.T, k *keyring.Keyring, h *hangingHost)
}{
	"Config.Audit": {set: func(cfg *keyring.Config, h *hangingHost) { cfg.Audit = func(keyring.Event) { h.hang() } },
		call: func(ctx context.Context, t *testing.T, k *keyring.Keyring, _ *hangingHost) {
			if _, err := k.Rotate(ctx, keyring.RotateOptions{}); err != nil {
				t.Error(err)
			}
		}},
	"Config.Metrics": {set: func(cfg *keyring.Config, h *hangingHost) { cfg.Metrics, cfg.MetricsEvery = h, time.Second }},
	"Config.Problems": {set: func(cfg *keyring.Config, h *hangingHost) {
		cfg.Problems = func() []keyring.Problem { h.hang(); return nil }
	}},
	"Config.Data.Under": {set: func(cfg *keyring.Config, h *hangingHost) { cfg.Data = h },
		call: func(ctx context.Context, _ *testing.T, k *keyring.Keyring, _ *hangingHost) {
			k.Rotate(ctx, keyring.RotateOptions{Full: true})
		}},
	"the io.Writer of Backup": {set: func(*keyring.Config, *hangingHost) {},
		call: func(ctx context.Context, t *testing.T, k *keyring.Keyring, h *hangingHost) {
			if _, err := k.Backup(ctx, h, kektest.Identity(t).Recipient()); err == nil {
				t.Error("a backup to nowhere")
			}
		}},
}

// TestFunctionOfTheHostThatHangs is named by Status, with since when, and holds up neither Status nor Close for long.
func TestFunctionOfTheHostThatHangs(t *testing.T) {
	t.Parallel()
	for name, f := range hangingFunctions {
		synctest.Test(t, func(t *testing.T) {
			h := &hangingHost{back: make(chan struct{})}
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
				cfg.Rotation.Every = -1
				f.set(cfg, h)
			}})
			s := keyringtest.Ready(t, c)
			began := time.Now()
			h.on.Store(true)
			if f.call != nil {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				f.call(ctx, t, s.Keyring, h)
				cancel()
			}
			asked := time.Now()
			keyringtest.Problems(t, s, keyring.ProblemHost) // asks Config.Problems
			if took := time.Since(asked); took > 350*time.Millisecond {
				t.Errorf("%s: the first Status took %v", name, took)
			}
			time.Sleep(20 * time.Minute)
			asked = time.Now()
			p := keyringtest.Problems(t, s, keyring.ProblemHost)
			if len(p) != 1 || !strings.HasPrefix(p[0].Detail, name+" has not returned since") || p[0].Since.Sub(began) > 10*time.Second {
				t.Errorf("%s: %v", name, p)
			}
			if took := time.Since(asked); took > 350*time.Millisecond {
				t.Errorf("%s: Status took %v", name, took)
			}
			closed := time.Now()
			err := s.Keyring.Close()
			if took := time.Since(closed); err == nil || !strings.Contains(err.Error(), name) || took > 11*time.Second {
				t.Errorf("%s: Close took %v: %v", name, took, err)
			}
			h.end()
			synctest.Wait() // the test fails if a goroutine is left
		})
	}
}

// TestProblemOfTheHostsFunctionEnds when it returns.
func TestProblemOfTheHostsFunctionEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hangingHost{back: make(chan struct{})}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Problems = func() []keyring.Problem { h.hang(); return []keyring.Problem{{Kind: "paper"}} }
		}})
		s := keyringtest.Ready(t, c)
		keyringtest.Problems(t, s, "paper")
		h.on.Store(true)
		keyringtest.Problems(t, s, "paper")
		time.Sleep(time.Minute)
		if len(keyringtest.Problems(t, s, keyring.ProblemHost)) != 1 || len(keyringtest.Problems(t, s, "paper")) != 1 {
			t.Error("it hangs, and what it said last is not shown with that")
		}
		h.end()
		synctest.Wait()
		if p := keyringtest.Problems(t, s, keyring.ProblemHost); len(p) != 0 || len(keyringtest.Problems(t, s, "paper")) != 1 {
			t.Errorf("afterwards: %v", p)
		}
	})
}

// TestPanicOfTheHostsProblems is the caller's of Status, and the next one is answered.
func TestPanicOfTheHostsProblems(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var panics atomic.Bool
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Problems = func() []keyring.Problem {
				if panics.Load() {
					panic("a fault of the host's")
				}
				return []keyring.Problem{{Kind: "paper"}}
			}
		}})
		s := keyringtest.Ready(t, c)
		panics.Store(true)
		func() {
			defer func() { recover() }()
			s.Keyring.Status(t.Context())
			t.Error("no panic")
		}()
		panics.Store(false)
		if p := keyringtest.Problems(t, s, "paper"); len(p) != 1 {
			t.Errorf("afterwards: %v", p)
		}
	})
}
