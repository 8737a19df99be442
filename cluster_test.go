package keyring_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// newCluster starts servers with their keys on simulated disks.
func newCluster(t testing.TB, opt keyringtest.Options) *keyringtest.Cluster {
	t.Helper()
	return keyringtest.NewCluster(t, opt)
}

// ready waits until the live servers are ready, and a leader seals, and returns it.
func ready(t testing.TB, c *keyringtest.Cluster) *keyringtest.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour) // virtual
	defer cancel()
	for _, s := range c.Live() {
		if err := s.Keyring.WaitReady(ctx); err != nil {
			t.Fatalf("%s: %v", s.ID, err)
		}
	}
	for {
		leader := c.Leader()
		changed := leader.Keyring.Changed()
		_, err := leader.Keyring.Encrypt(nil, nil)
		if !errors.Is(err, keyring.ErrNotReady) && !errors.Is(err, keyring.ErrNotLeader) {
			return leader
		}
		select { // its barrier is on the way, or another leads
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: %v", leader.ID, err)
		}
	}
}

func TestClusterSealsOpensAndRotates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{Servers: 3})
		leader := ready(t, c)
		first, err := leader.Keyring.Encrypt([]byte("hello"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Log("rotated in", time.Since(start), key.State, key.Holders)
		if id, _ := keyring.CiphertextKeyID(first); key.State != keyring.StateActive || key.ID == id {
			t.Fatalf("after Rotate: key %s is %s", key.ID, key.State)
		}
		synctest.Wait()
		for _, s := range c.Servers {
			got, err := s.Keyring.Decrypt(first, []byte("aad"))
			if err != nil || string(got) != "hello" {
				t.Errorf("%s: %q, %v", s.ID, got, err)
			}
			st, _ := s.Keyring.Status(t.Context())
			t.Log(s.ID, st.Problems, st.Keys[0].Holders)
		}
	})
}
