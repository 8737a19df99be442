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
	on     atomic.Bool
	back   chan struct{}
	record keyring.Sealed // of hangingRecords
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

// hangingRecords is a host's data of one record. A function of it hangs: Count, or Replace if it is no Counter.
type hangingRecords struct {
	*hangingHost
}

func (d hangingRecords) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) { yield(d.record, nil) }
}

func (d hangingRecords) Replace(context.Context, []keyring.Replacement) (int, error) {
	d.hang()
	return 0, nil
}

type hangingCounter struct{ hangingRecords }

func (d hangingCounter) Count(context.Context, keyring.KeyID) (int, error) { d.hang(); return 1, nil }

// hangingGrowth is Metrics whose counters hang.
type hangingGrowth struct{ *hangingHost }

func (hangingGrowth) SetGauge(string, float64, map[string]string)     {}
func (g hangingGrowth) AddCounter(string, float64, map[string]string) { g.hang() }

// moveRecord has the keyring move the record off its key.
func moveRecord(ctx context.Context, t *testing.T, k *keyring.Keyring, h *hangingHost) {
	sealed, err := k.Encrypt([]byte("data"), nil)
	if err != nil {
		t.Error(err)
	}
	h.record.Ciphertext = sealed
	k.Rotate(ctx, keyring.RotateOptions{Full: true})
}

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
	"Config.Data.Replace": {set: func(cfg *keyring.Config, h *hangingHost) { cfg.Data = hangingRecords{h} }, call: moveRecord},
	"Config.Data.Count":   {set: func(cfg *keyring.Config, h *hangingHost) { cfg.Data = hangingCounter{hangingRecords{h}} }, call: moveRecord},
	"Config.Metrics, a counter": {set: func(cfg *keyring.Config, h *hangingHost) {
		cfg.Metrics, cfg.MetricsEvery = hangingGrowth{h}, time.Second
	},
		call: func(_ context.Context, t *testing.T, k *keyring.Keyring, _ *hangingHost) {
			for range 1 << 13 { // one in 256 is counted
				if _, err := k.Encrypt(nil, nil); err != nil {
					t.Fatal(err)
				}
			}
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
		name, _, _ := strings.Cut(name, ",")
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

// TestScanThatGoesOnIsNoProblem: a host with much data takes long, and yields a record now and then.
func TestScanThatGoesOnIsNoProblem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data = -1, slowScan{}
		}})
		s := keyringtest.Ready(t, c)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		s.Keyring.Rotate(ctx, keyring.RotateOptions{Full: true})
		time.Sleep(25 * time.Minute)
		if p := keyringtest.Problems(t, s, keyring.ProblemHost); len(p) > 0 {
			t.Errorf("while it goes on: %v", p)
		}
		time.Sleep(16 * time.Minute)
		if p := keyringtest.Problems(t, s, keyring.ProblemHost); len(p) != 1 {
			t.Errorf("when it goes on no longer: %v", p)
		}
	})
}

// slowScan has 30 records of another key's, and yields one a minute. Then it hangs until its context ends.
type slowScan struct{ keyring.NoData }

func (slowScan) Under(ctx context.Context, _ keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for range 30 {
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
				return
			}
			if !yield(keyring.Sealed{Ref: "another's", Ciphertext: make([]byte, 64)}, nil) {
				return
			}
		}
		<-ctx.Done()
	}
}

// TestTransportThatHangs beyond its deadline is named, and holds up neither Status nor Close for long. One that keeps to it is not.
func TestTransportThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := keyringtest.NewHang()
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == leader && e.Kind == "call" {
				h.Wait()
			}
			return keyringtest.Reply{Hang: e.Kind == "call" && e.Server != leader}
		})
		h.On.Store(true)
		time.Sleep(20 * time.Minute)
		for _, s := range c.Servers {
			asked := time.Now()
			p := keyringtest.Problems(t, s, keyring.ProblemHost)
			if is := len(p) == 1 && strings.HasPrefix(p[0].Detail, "Config.Transport has not returned since"); is != (s == leader) {
				t.Errorf("%s: %v", s.ID, p)
			}
			if took := time.Since(asked); took > 350*time.Millisecond {
				t.Errorf("%s: Status took %v", s.ID, took)
			}
		}
		closed := time.Now()
		err := leader.Keyring.Close()
		if took := time.Since(closed); err == nil || !strings.Contains(err.Error(), "Config.Transport") || took > 11*time.Second {
			t.Errorf("Close took %v: %v", took, err)
		}
		h.End()
	})
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
