package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/node"
)

// refusesToOpen requires each live server to say that it does not have the key.
func refusesToOpen(t testing.TB, c *keyringtest.Cluster, ciphertext []byte, when string) {
	t.Helper()
	time.Sleep(time.Second) // virtual: the table of Decrypt follows
	for _, s := range c.Live() {
		if got, err := s.Keyring.Decrypt(ciphertext, nil); !errors.Is(err, keyring.ErrUnknownKey) || got != nil {
			t.Errorf("%s: %s: %q, %v", when, s.ID, got, err)
		}
	}
}

// TestCompromisedLeavesAThiefNothing: one call, and what was taken is of no use: for tokens from the
// activation on, for data from the end of its move, though the leader changes meanwhile.
func TestCompromisedLeavesAThiefNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, func(cfg *keyring.Config) { cfg.Tokens.Issuer = keyringtest.TokenIssuer })
		var stolen []keyring.KeyID
		var forged [][]byte
		var thieves []keyringtest.Outsider
		for i := range 3 {
			if i > 0 {
				rc.Rotate(keyring.RotateOptions{Full: i == 1}) // the first is deprecated by the time, the second inactive
			}
			rc.Store(fmt.Sprint(i), 600)
			leader := rc.Leader()
			c, err := leader.Keyring.Encrypt([]byte("forged"), nil)
			if err != nil {
				t.Fatal(err)
			}
			id := rc.Active()
			stolen, forged, thieves = append(stolen, id), append(forged, c), append(thieves, keyringtest.Insider(t, leader, id))
		}
		rc.Await(stolen[0], keyring.StateDeprecated)
		next, err := rc.Leader().Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(1000 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		moves := 0
		for _, s := range rc.Servers {
			d := rc.DataOf(s)
			d.Note(func() {
				d.Replacing = func() error {
					if moves++; moves == 2 {
						return s.Raft.LeadershipTransfer().Error()
					}
					return nil
				}
			})
		}
		fresh := rc.Rotate(keyring.RotateOptions{Compromised: true})
		keyringtest.AwaitRing(t, rc.Cluster)
		for _, thief := range thieves {
			keyringtest.CheckVerifies(t, rc.Cluster, thief.TokenFor(time.Hour), false, "as soon as the new key is active")
		}
		for _, id := range append(stolen, next.ID) {
			rc.Await(id, "removed")
		}
		for i, c := range forged {
			refusesToOpen(t, rc.Cluster, c, fmt.Sprint("forged under key ", i))
		}
		if rc.Check("moved"); moves < 2 || rc.Active() != fresh || rc.Under(fresh) != 3*600 {
			t.Errorf("%d batches; %d records under the new key", moves, rc.Under(fresh))
		}
		for _, s := range rc.Servers {
			if got := keyringtest.FilesOf(s, stolen[2]); len(got) != 1 || !strings.Contains(got[0], ".removed-") {
				t.Errorf("%s: files %v, while the removal can be undone", s.ID, got)
			}
		}
	})
}

// TestDeprecatedKeyOpensNothing by itself: a scan has found that nothing is sealed under it, so what comes is
// forged, or from elsewhere. A key that was adopted goes on, and a restore of a snapshot from before
// brings back what it opened.
func TestDeprecatedKeyOpensNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		rc.Store("r", 10)
		old, leader := rc.Active(), rc.Leader()
		copied, err := leader.Keyring.Encrypt([]byte("copied"), nil)
		if err != nil {
			t.Fatal(err)
		}
		rc.Rotate(keyring.RotateOptions{})
		restore := keyringtest.TakeSnapshot(t, leader)
		for _, s := range rc.Servers {
			d := rc.DataOf(s)
			d.Note(func() {
				d.Replacing = func() error { time.Sleep(time.Minute); return nil } // virtual: until its data has moved
			})
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		opens := func(when string) {
			t.Helper()
			for _, s := range rc.Live() {
				if got, err := s.Keyring.Decrypt(copied, nil); err != nil || string(got) != "copied" {
					t.Errorf("%s: %s: %q, %v", when, s.ID, got, err)
				}
			}
		}
		opens("while its data moves")
		rc.Await(old, keyring.StateDeprecated)
		refusesToOpen(t, rc.Cluster, copied, "deprecated")
		for _, s := range rc.Live() {
			if got, err := s.Keyring.DecryptDeprecated(copied, nil); err != nil || string(got) != "copied" {
				t.Errorf("%s: another server asks for it: %q, %v", s.ID, got, err)
			}
			if got, err := s.Keyring.DecryptDeprecated(copied, []byte("aad")); !errors.Is(err, keyring.ErrDecrypt) || got != nil {
				t.Errorf("%s: with another AAD: %q, %v", s.ID, got, err)
			}
		}
		for _, s := range rc.Servers {
			rc.Restart(s)
			rc.Leader()
		}
		keyringtest.Ready(t, rc.Cluster)
		keyringtest.AwaitRing(t, rc.Cluster)
		refusesToOpen(t, rc.Cluster, copied, "after a restart")
		restore(rc.Leader())
		keyringtest.AwaitRing(t, rc.Cluster)
		time.Sleep(time.Second) // virtual
		opens("restored")
		rc.Check("restored")
	})
}

// TestAdoptedKeyOpensWhenItIsDeprecated: Data may know nothing of what was sealed under it elsewhere.
func TestAdoptedKeyOpensWhenItIsDeprecated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		elsewhere := keyringtest.Ready(t, keyringtest.NewCluster(t, keyringtest.Options{Servers: 1}))
		id := keyringtest.Ring(elsewhere.FSM).Active().ID
		sealed, err := elsewhere.Keyring.Encrypt([]byte("elsewhere"), nil)
		if err != nil {
			t.Fatal(err)
		}
		rc := keyringtest.NewRecordsCluster(t, 1, false, nil)
		s := keyringtest.Ready(t, rc.Cluster)
		s.Disk.Plant(nks.FileName(id), 0o600, elsewhere.Disk.Bytes(nks.FileName(id)))
		rc.Restart(s) // which reads it
		keyringtest.Ready(t, rc.Cluster)
		if err := s.Keyring.Adopt(t.Context(), keyring.KeyID(id)); err != nil {
			t.Fatal(err)
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(keyring.KeyID(id), keyring.StateDeprecated)
		time.Sleep(time.Second) // virtual
		if got, err := s.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "elsewhere" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// TestCompromisedIsAskedForOnAnyServer, and the order goes with the call to the leader.
func TestCompromisedIsAskedForOnAnyServer(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Data = keyring.NoData{} })
	c.Ready(ctx)
	for id, n := range c.Nodes {
		old := n.Keyring().Keys()[0].ID
		_, err := n.Rotate(ctx, keyring.RotateOptions{Compromised: true})
		for errors.Is(err, keyring.ErrNotLeader) { // an election on a busy machine
			_, err = n.Rotate(ctx, keyring.RotateOptions{Compromised: true})
		}
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		c.Await(ctx, n, "without the key of before", func(keyring.Status) bool {
			return !slices.ContainsFunc(n.Keyring().Keys(), func(k keyring.Key) bool { return k.ID == old })
		})
	}
}

// TestCompromisedNeedsData, since it is a full rotation.
func TestCompromisedNeedsData(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := keyringtest.Ready(t, keyringtest.NewCluster(t, keyringtest.Options{Servers: 1}))
		if _, err := s.Keyring.Rotate(context.Background(), keyring.RotateOptions{Compromised: true}); !errors.Is(err, keyring.ErrNoData) {
			t.Errorf("%v", err)
		}
	})
}
