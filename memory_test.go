package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestRemovedKeyIsOverwrittenInMemory at once, on every server that runs.
func TestRemovedKeyIsOverwrittenInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		live := map[*keyringtest.Server][][]byte{}
		for _, s := range c.Live() {
			live[s] = liveKeys(s.Keyring, old)
		}
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		synctest.Wait()
		time.Sleep(time.Hour) // of heartbeats
		for s, secrets := range live {
			if len(secrets) != 2 || !zero(secrets[0]) || !zero(secrets[1]) {
				t.Errorf("%s: %d secrets of the removed key, and not all overwritten", s.ID, len(secrets))
			}
		}
	})
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// TestRemovedServerGetsNothingFromWhoIsBehind: a follower whose log ends before the removal takes the removed
// server for a member. The key that was made after it, which the leader offers, is not there for it.
func TestRemovedServerGetsNothingFromWhoIsBehind(t *testing.T) {
	for _, late := range []bool{true, false} { // the offer comes before the follower is behind, or after
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 5, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
				cfg.Data = keyring.NoData{}
			}})
			leader := keyringtest.Ready(t, c)
			keyringtest.AwaitKeys(t, c)
			others := slices.DeleteFunc(slices.Clone(c.Servers), func(s *keyringtest.Server) bool { return s == leader })
			gone, behind := others[0], others[1]
			goOn := make(chan struct{})
			defer close(goOn)
			stop := func() { // behind writes no more of raft's log; all else of it works
				c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
					if e.Server == behind && e.Kind == "log" {
						<-goOn
					}
					return keyringtest.Reply{}
				})
			}
			var key keyring.Key
			var err error
			if late {
				stop()
				if err := leader.Raft.RemoveServer(gone.ID, 0, 0).Error(); err != nil {
					t.Fatal(err)
				}
				key, err = leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true})
			} else { // its files have a key that no ring knows
				key.ID, err = plantUnknown(behind.Keyring)
			}
			if err != nil {
				t.Fatal(err)
			}
			hello, err := peer.Request{Hello: &peer.HelloRequest{}}.Encode()
			if err != nil {
				t.Fatal(err)
			}
			answer, err := behind.Keyring.ServePeer(t.Context(), gone.ID, hello)
			if err != nil {
				t.Fatal(err)
			}
			if told, err := peer.DecodeAnswer[peer.HelloAnswer](answer); err == nil && len(told.Orphans) > 0 {
				t.Errorf("it names %d keys to who does not lead", len(told.Orphans))
			}
			if keys := fetched(t, behind, gone, key.ID); keys > 0 {
				t.Error("it hands out a key that its ring does not know")
			}
			if keys := fetched(t, behind, gone, keyring.KeyID(keyring.Ring(behind.FSM).Active().ID)); keys != 1 {
				t.Error("it does not hand out a key of its ring to who is a member as far as it knows")
			}
			if late && keyring.Store(behind.Keyring).InMemory(meta.KeyID(key.ID)) {
				t.Error("it has taken up an offer, and is behind the configuration of who made it")
			}
		})
	}
}

// TestLeaderGivesAnOfferedKeyToMembersAlone: its configuration is the newest.
func TestLeaderGivesAnOfferedKeyToMembersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		gone := keyringtest.Follower(c)
		id, err := plantUnknown(leader.Keyring) // as while it is offered
		if err != nil {
			t.Fatal(err)
		}
		if n := fetched(t, leader, gone, id); n != 1 {
			t.Errorf("a member gets %d keys of the leader's", n)
		}
		if err := leader.Raft.RemoveServer(gone.ID, 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		if n := fetched(t, leader, gone, id); n != 0 {
			t.Error("a removed server gets the leader's new key")
		}
	})
}

// fetched is how many keys a server hands out to another that asks for one.
func fetched(t *testing.T, from, to *keyringtest.Server, id keyring.KeyID) int {
	t.Helper()
	pull, err := peer.NewFetch([]peer.ID{peer.ID(id)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := from.Keyring.ServePeer(t.Context(), to.ID, pull.Request())
	if err != nil {
		t.Fatal(err)
	}
	a, err := peer.DecodeAnswer[peer.FetchAnswer](b)
	if err != nil {
		return 0
	}
	return len(a.Keys)
}

// TestRemovedKeyOfNomadsLeavesItsFileToTheOperator, who is told.
func TestRemovedKeyOfNomadsLeavesItsFileToTheOperator(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, keys, files := keyringtest.NomadDisk(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Pace: time.Hour, Disk: func(raft.ServerID) *keyringtest.Disk { return disk }})
		s := keyringtest.Ready(t, c)
		time.Sleep(10 * time.Hour)
		for _, k := range keys[:4] {
			keyringtest.Remove(t, c, keyring.KeyID(k.ID), keyring.RemoveOptions{Force: true, Now: true})
		}
		time.Sleep(10 * time.Hour)
		for restarts := range 2 {
			for _, k := range keys[:4] {
				if _, err := s.Keyring.OpenNomad(keyring.KeyID(k.ID), k.Seal("data")); !errors.Is(err, keyring.ErrUnknownKey) {
					t.Errorf("%s: %v", k.Form, err)
				}
				if live := liveKeys(s.Keyring, keyring.KeyID(k.ID)); len(live) > 0 {
					t.Errorf("%s is in memory", k.Form)
				}
				for _, name := range keyringtest.FilesOf(s, keyring.KeyID(k.ID)) {
					if files[name] == nil {
						t.Errorf("%d: %s is left", restarts, name)
					}
				}
			}
			if ps := keyringtest.Problems(t, s, keyring.ProblemNomad); len(ps) != 1 || len(ps[0].Keys) != len(keys) || !strings.Contains(fmt.Sprint(ps), "delete them") {
				t.Errorf("%d: %v", restarts, ps)
			}
			c.Restart(s)
			keyringtest.Ready(t, c)
			time.Sleep(10 * time.Hour)
		}
		keyringtest.CheckUnchanged(t, s.Disk, files, "removed")
	})
}

// TestKeyThatReadsBackAsAnotherIsNotHeld: the disk takes all that it is given, and gives
// something else back.
func TestKeyThatReadsBackAsAnotherIsNotHeld(t *testing.T) {
	t.Parallel()
	for what, plant := range map[string]func(t *testing.T, d *keyringtest.Disk, id keyring.KeyID){
		"garbage": func(_ *testing.T, d *keyringtest.Disk, id keyring.KeyID) {
			d.Plant(nks.FileName(id), 0o600, []byte("garbage"))
		},
		"another key": func(t *testing.T, d *keyringtest.Disk, id keyring.KeyID) {
			keyringtest.PlantKey(t, d, id, keyring.InlineKEK())
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := keyringtest.NewLife(t)
			l.Start()
			if err := l.Seal(); err != nil {
				t.Fatal(err)
			}
			live := len(liveKeys(l.Keyring))
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if id, ok := nks.ParseFileName(op.Name); ok && op.Kind == "open" && keyring.Ring(l.FSM).Key(id) == nil && l.Disk.Bytes(op.Name) != nil {
					plant(t, l.Disk, id)
				}
				return keyringtest.Fault{}
			})
			if err := l.Rotate(); err == nil || !strings.Contains(err.Error(), "read back") {
				t.Errorf("%s: rotate: %v", what, err)
			}
			if l.Disk.OnOp(nil); len(l.Keyring.Keys()) != 1 || len(liveKeys(l.Keyring)) != live {
				t.Errorf("%s: %d keys, %d secrets in memory", what, len(l.Keyring.Keys()), len(liveKeys(l.Keyring)))
			}
			if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
				t.Errorf("%s: afterwards: %v", what, err)
			}
			l.Stop(t)
			l.Start()
			l.Vault.CheckOpens(t, l.Keyring, what)
		})
	}
}

// TestLeaderWithoutTheActiveKeyHandsOver to a server that holds it, when nobody gives it the key.
func TestLeaderWithoutTheActiveKeyHandsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		active := leader.Keyring.Keys()[0].ID
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if keyringtest.IsFetch(e, leader.ID) {
				return keyringtest.Reply{Err: errors.New("no way")}
			}
			return keyringtest.Reply{}
		})
		if err := lose(leader.Keyring, active); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // virtual
		if c.Leader() != leader {
			t.Fatal("it gives up at once")
		}
		time.Sleep(10 * time.Second) // virtual
		next := c.Leader()
		if next == leader {
			t.Fatalf("%s still leads, and can't seal", leader.ID)
		}
		if _, err := next.Keyring.Encrypt([]byte("hello"), nil); err != nil {
			t.Error(err)
		}
		c.OnEvent(nil)
		keyringtest.AwaitKeys(t, c)
	})
}

// TestI9LockedKeyDelaysNoOther: the file of one key is wrapped under a KEK that this server is not given.
// Nobody is asked for that key, and any other comes at once.
func TestI9LockedKeyDelaysNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		v := &keyringtest.Vault{TB: t}
		if err := v.Seal(keyringtest.Ready(t, c)); err != nil {
			t.Fatal(err)
		}
		keyringtest.Rotate(t, c, v, 2)
		keyringtest.AwaitKeys(t, c)
		s := keyringtest.Follower(c)
		keys := s.Keyring.Keys()
		locked, other := keys[2].ID, keys[1].ID
		c.Stop(s)
		keyringtest.PlantKey(t, s.Disk, locked, kektest.New("unknown"))
		c.Restart(s)
		keyringtest.Ready(t, c)
		for range 3 {
			time.Sleep(10 * time.Minute) // virtual
			if err := lose(s.Keyring, other); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for !keyring.Store(s.Keyring).InMemory(meta.KeyID(other)) {
				time.Sleep(100 * time.Millisecond) // virtual
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("another key came after %v", took)
			}
		}
		if keyring.Store(s.Keyring).InMemory(meta.KeyID(locked)) {
			t.Error("a copy has taken the place of the file that waits for its KEK")
		}
	})
}

// TestKeyThatComesMeanwhileIsNotWrittenAgain: the search for files of what was missing takes its time,
// and thousands of keys may come until it is done.
func TestKeyThatComesMeanwhileIsNotWrittenAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1})
		s := keyringtest.Ready(t, c)
		id := s.Keyring.Keys()[0].ID
		before := s.Disk.Bytes(nks.FileName(id))
		heal := func() { // what the replicator does about a key that it took for missing
			t.Helper()
			ring := keyring.Ring(s.FSM)
			missing := []*meta.Key{ring.Key(meta.KeyID(id))}
			if err := keyring.Store(s.Keyring).Heal(t.Context(), ring, missing, missing); err != nil {
				t.Fatal(err)
			}
		}
		heal()
		if !bytes.Equal(s.Disk.Bytes(nks.FileName(id)), before) {
			t.Error("its file was written again")
		}
		s.Disk.Unlink(nks.FileName(id))
		if held, err := keyring.Store(s.Keyring).Confirm(meta.KeyID(id)); held || err != nil {
			t.Fatalf("without its file: %v, %v", held, err)
		}
		heal()
		if s.Disk.Bytes(nks.FileName(id)) == nil {
			t.Error("a file that is gone is not written again")
		}
	})
}

// liveKeys are the key bytes themselves that a keyring has in memory, not a copy of them: of these keys, or of all.
func liveKeys(k *keyring.Keyring, ids ...keyring.KeyID) (live [][]byte) {
	if len(ids) == 0 {
		for _, id := range keyring.Store(k).Present().InMemory {
			ids = append(ids, keyring.KeyID(id))
		}
	}
	for _, id := range ids {
		keyring.Store(k).View(meta.KeyID(id), func(m *nks.Material) { live = append(live, m.Root()[:], m.Signing()) })
	}
	return live
}

// lose takes a key out of a keyring's memory and directory, as a disk that has failed would.
func lose(k *keyring.Keyring, id keyring.KeyID) error {
	store, removed := keyring.Store(k), func(meta.KeyID) bool { return true }
	store.NoteRemoved(meta.KeyID(id))
	k.Notify()
	return errors.Join(store.SetAside(meta.KeyID(id), removed), store.Unlink(meta.KeyID(id), removed))
}

// readFiles reads the key files that are not in memory, removed keys' too.
func readFiles(k *keyring.Keyring) error {
	return keyring.Store(k).Heal(context.Background(), &meta.Ring{}, nil, nil)
}

// reread drops a key from memory and reads its file again, while Decrypt still has the one that was dropped.
func reread(k *keyring.Keyring, id keyring.KeyID) error {
	keyring.Store(k).NoteRemoved(meta.KeyID(id))
	return readFiles(k)
}

// dropActive takes the active key out of memory.
func dropActive(k *keyring.Keyring) {
	for _, key := range k.Keys() {
		if key.State == keyring.StateActive {
			keyring.Store(k).NoteRemoved(meta.KeyID(key.ID))
		}
	}
}

// plantUnknown writes a key file that no ring knows, as an offer does.
func plantUnknown(k *keyring.Keyring) (keyring.KeyID, error) {
	secret, err := nks.Generate("EdDSA")
	if err != nil {
		return keyring.KeyID{}, err
	}
	id := keyringtest.NewKeyID()
	return id, keyring.Store(k).Put(context.Background(), keystore.Key{
		ID: meta.KeyID(id), Algorithm: "EdDSA", Check: secret.Check(id, "EdDSA"), Created: time.Now().UTC().Round(0), Secret: secret,
	})[0]
}
