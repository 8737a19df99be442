package scenarios_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// throttledKMS takes its time, allows so many calls a second, and refuses the rest.
type throttledKMS struct {
	*kektest.KMS
	takes     time.Duration
	perSecond int

	mu     sync.Mutex // guards below
	second time.Time
	left   int
	calls  int
}

func (k *throttledKMS) take() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	if now := time.Now().Truncate(time.Second); !now.Equal(k.second) {
		k.second, k.left = now, k.perSecond
	}
	if k.left == 0 {
		return fmt.Errorf("%w: later", keyring.ErrKEKThrottled)
	}
	k.left--
	return nil
}

func (k *throttledKMS) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	time.Sleep(k.takes) // virtual
	if err := k.take(); err != nil {
		return nil, err
	}
	return k.KMS.Wrap(ctx, plaintext, aad)
}

func (k *throttledKMS) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	time.Sleep(k.takes) // virtual
	if err := k.take(); err != nil {
		return nil, err
	}
	return k.KMS.Unwrap(ctx, wrapped, aad)
}

// TestKeysAreOpenedAsFastAsTheirKEKAllows, to the last one: 3,650 at 50 a second are open after some two minutes, and at 2
// seconds each, 16 at a time, after some eight. There are not many more calls than files.
func TestKeysAreOpenedAsFastAsTheirKEKAllows(t *testing.T) {
	t.Parallel()
	for name, k := range map[string]*throttledKMS{
		"throttled": {takes: 20 * time.Millisecond, perSecond: 50},
		"slow":      {takes: 2 * time.Second, perSecond: 1000},
	} {
		most := map[string]time.Duration{"throttled": 3 * time.Minute, "slow": 10 * time.Minute}[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				k.KMS = kektest.New("a")
				const files = 3650
				after := openAll(t, k, files, most)
				t.Logf("%v, %d calls", after, k.calls)
				if after > most || k.calls > files*3/2 {
					t.Errorf("%v, %d calls", after, k.calls)
				}
			})
		})
	}
}

// openAll returns how long a server takes to open so many files under a KEK.
func openAll(t *testing.T, k keyring.KEK, files int, most time.Duration) time.Duration {
	t.Helper()
	disk := keyringtest.NewDisk()
	for i := range files {
		keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i >> 8), byte(i)}, keyring.KEK(kektest.New("a")))
	}
	began := time.Now()
	c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Disk: func(raft.ServerID) *keyringtest.Disk { return disk },
		Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.KEKs = []keyring.KEK{k} }})
	for {
		st, err := c.Servers[0].Keyring.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Keys) > files && len(st.Missing) == 0 && st.OnOldKEKs == 0 {
			return time.Since(began)
		}
		if time.Since(began) > most {
			t.Fatalf("%d keys, missing %d, after %v: %v", len(st.Keys), len(st.Missing), time.Since(began), st.Problems)
		}
		time.Sleep(time.Second) // virtual
	}
}
