package scenarios_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// lateKMS is a KMS that takes its time.
type lateKMS struct {
	*kektest.KMS
	takes time.Duration
}

func (k lateKMS) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	time.Sleep(k.takes) // virtual
	return k.KMS.Wrap(ctx, plaintext, aad)
}

func (k lateKMS) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	time.Sleep(k.takes) // virtual
	return k.KMS.Unwrap(ctx, wrapped, aad)
}

// TestThousandsOfKeysUnderASlowKEK do not hold Open. A keystore alone makes no first key before all its keys are open: they
// would be orphans. A server that has had them in its ring is ready as soon as the active one is open.
func TestThousandsOfKeysUnderASlowKEK(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const files = 600
		disk := keyringtest.NewDisk()
		for i := range files {
			keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i >> 8), byte(i)}, keyring.KEK(kektest.New("a")))
		}
		a := lateKMS{kektest.New("a"), 2 * time.Second}
		open := func(what func()) {
			t.Helper()
			began := time.Now()
			what()
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("Open took %v", d)
			}
		}
		var c *keyringtest.Cluster
		open(func() {
			c = keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Disk: func(raft.ServerID) *keyringtest.Disk { return disk },
				Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.KEKs = []keyring.KEK{a} }})
		})
		status := func() keyring.Status {
			t.Helper()
			st, err := c.Servers[0].Keyring.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
		time.Sleep(20 * time.Second) // virtual
		st := status()
		if p, ok := problem(st, keyring.ProblemOpening); !ok || len(p.Keys) < 100 || len(st.Keys) > 0 {
			t.Fatalf("%d keys, %v", len(st.Keys), st.Problems)
		}
		time.Sleep(3 * time.Minute) // virtual
		if st = status(); !st.Ready || len(st.Keys) != files+1 || len(st.Missing)+len(st.Orphans) > 0 {
			t.Fatalf("ready %v, %d keys, missing %d, orphans %d, %v", st.Ready, len(st.Keys), len(st.Missing), len(st.Orphans), st.Problems)
		}
		open(func() { c.Restart(c.Servers[0]) })
		time.Sleep(20 * time.Second) // virtual
		st = status()
		if p, ok := problem(st, keyring.ProblemOpening); !st.Ready || !ok || len(p.Keys) < 100 {
			t.Errorf("after a restart: ready %v, %v", st.Ready, st.Problems)
		}
		if _, ok := problem(st, keyring.ProblemKeyMissing); ok {
			t.Errorf("they are not missing: %v", st.Problems)
		}
		time.Sleep(3 * time.Minute) // virtual
		if _, opening := problem(status(), keyring.ProblemOpening); opening || len(status().Missing) > 0 || status().OnOldKEKs > 0 {
			st = status()
			t.Errorf("missing %d, on old KEKs %d, %v", len(st.Missing), st.OnOldKEKs, st.Problems)
		}
	})
}
