package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// resume starts raft on a fresh FSM and app, without having it restore its snapshots.
func (h *host) resume(t *testing.T, app raft.FSM, load bool) {
	t.Helper()
	h.conf.NoSnapshotRestoreOnStart = true
	h.fsm = keyring.NewFSM()
	if load {
		if err := h.fsm.Load(h.snaps); err != nil {
			t.Fatal(err)
		}
	}
	h.run(t, keyring.Mux(h.fsm, app))
}

// unopened is what Open says when it has to refuse.
func (h *host) unopened(t *testing.T) error {
	t.Helper()
	k, err := keyring.Open(h.onDisk(t), h.config())
	if err == nil {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	return err
}

// aside is a host that does not lead.
func aside(hosts []*host, leader *host) *host {
	for _, h := range hosts {
		if h != leader {
			return h
		}
	}
	return nil
}

// snapshotted has raft make a snapshot of all that is committed.
func (h *host) snapshotted(t *testing.T) {
	t.Helper()
	h.put(t, "before the snapshot")
	time.Sleep(time.Minute)
	for _, o := range *h.all {
		if err := o.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *host) put(t *testing.T, data string) {
	t.Helper()
	if err := h.raft.Apply([]byte(data), 0).Error(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenRefusesAnFSMThatLacksItsHistory: whenever it is called, and whatever raft has done meanwhile.
func TestOpenRefusesAnFSMThatLacksItsHistory(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(t *testing.T, h, leader *host){
		"before the first entry": func(*testing.T, *host, *host) {},
		"after some of the host's": func(t *testing.T, h, leader *host) {
			leader.put(t, "more")
			time.Sleep(time.Minute)
		},
		"after one of the keyring's": func(t *testing.T, h, leader *host) {
			if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		},
		"after another snapshot": func(t *testing.T, h, leader *host) {
			leader.put(t, "more")
			time.Sleep(time.Minute)
			if err := h.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := newHosts(t, 3)
				for _, h := range hosts {
					h.open(t, &app{})
				}
				leader := leaderOf(t, hosts)
				sealed, err := leader.keyring.Encrypt([]byte("x"), nil)
				if err != nil {
					t.Fatal(err)
				}
				leader.snapshotted(t)
				h := aside(hosts, leader)
				h.stop(t)
				if name == "before the first entry" {
					h.conf.HeartbeatTimeout, h.conf.ElectionTimeout = time.Hour, time.Hour
					leader.trans.Disconnect(raft.ServerAddress(h.id))
				}
				h.resume(t, &app{}, false)
				between(t, h, leader)
				if err := h.unopened(t); !errors.Is(err, keyring.ErrNotLoaded) || !strings.Contains(err.Error(), "snapshot at index") {
					t.Errorf("Open: %v", err)
				}
				if err := h.fsm.Admit(sealed); !errors.Is(err, keyring.ErrNotLoaded) {
					t.Errorf("Admit: %v", err)
				}
				leader.put(t, "and more")
				time.Sleep(time.Minute)
				if err := h.raft.Snapshot().Error(); name != "before the first entry" && (err == nil || !strings.Contains(err.Error(), keyring.ErrNotLoaded.Error())) {
					t.Errorf("raft's snapshot of an FSM that lacks its history: %v", err)
				}
			})
		})
	}
}

// TestAdmitNeverAnswersWithoutTheHistory: also before anybody has called Open, and also when the keyring's
// entries of the time after the snapshot have come.
func TestAdmitNeverAnswersWithoutTheHistory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 3)
		for _, h := range hosts {
			h.open(t, &app{})
		}
		leader := leaderOf(t, hosts)
		var sealed [2][]byte
		for i := range sealed {
			if i == 1 {
				leader.snapshotted(t)
				h := aside(hosts, leader)
				h.stop(t)
				h.resume(t, &app{}, false)
				if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
			}
			var err error
			if sealed[i], err = leader.keyring.Encrypt([]byte("x"), nil); err != nil {
				t.Fatal(err)
			}
		}
		h := aside(hosts, leader)
		for i, s := range sealed {
			if err := h.fsm.Admit(s); !errors.Is(err, keyring.ErrNotLoaded) || errors.Is(err, keyring.ErrStaleKey) {
				t.Errorf("under key %d: %v", i, err)
			}
		}
	})
}

// TestOpenTakesAnFSMThatHasItsHistory: a snapshot that was made, or came, since the start is no reason to
// refuse.
func TestOpenTakesAnFSMThatHasItsHistory(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, hosts []*host) *host{
		"a snapshot before the first Open": func(t *testing.T, hosts []*host) *host {
			for _, h := range hosts {
				h.resume(t, &app{}, false)
			}
			leader := leaderOf(t, hosts)
			leader.snapshotted(t)
			return leader
		},
		"opened a second time on one FSM": func(t *testing.T, hosts []*host) *host {
			for _, h := range hosts {
				h.resume(t, &app{}, false)
				h.openKeyring(t)
			}
			leader := leaderOf(t, hosts)
			leader.snapshotted(t)
			h := aside(hosts, leader)
			h.serving.Store(nil)
			if err := h.keyring.Close(); err != nil {
				t.Fatal(err)
			}
			h.keyring = nil
			return h
		},
		"a server that gets a snapshot": func(t *testing.T, hosts []*host) *host {
			for _, h := range hosts {
				h.open(t, &app{})
			}
			leader := leaderOf(t, hosts)
			leader.snapshotted(t)
			joiner := newHost(t, "joiner", leader.all)
			joiner.resume(t, &app{}, false)
			if err := leader.raft.AddVoter(joiner.id, raft.ServerAddress(joiner.id), 0, 0).Error(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if list, err := joiner.snaps.List(); err != nil || len(list) == 0 {
				t.Fatalf("the joiner was sent no snapshot (%v)", err)
			}
			return joiner
		},
		"a recovered cluster": func(t *testing.T, hosts []*host) *host {
			for _, h := range hosts {
				h.open(t, &app{})
			}
			leader := leaderOf(t, hosts)
			leader.put(t, "some")
			for _, h := range hosts {
				h.stop(t)
			}
			alone := raft.Configuration{Servers: []raft.Server{{ID: leader.id, Address: raft.ServerAddress(leader.id)}}}
			if err := raft.RecoverCluster(leader.conf, keyring.Mux(keyring.NewFSM(), &app{}), leader.log, leader.log, leader.snaps, leader.trans, alone); err != nil {
				t.Fatal(err)
			}
			leader.resume(t, &app{}, true)
			return leader
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := newHosts(t, 3)
				h := prepare(t, hosts)
				h.openKeyring(t)
				if h.raft.Stats()["last_snapshot_index"] == "0" {
					t.Error("there is no snapshot: nothing was tried")
				}
				if name == "a snapshot before the first Open" {
					for _, o := range hosts {
						if o != h {
							o.openKeyring(t)
						}
					}
				}
				if err := h.keyring.WaitReady(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLoadGivesAnFSMItsHistory: servers that are restarted one after the other, each after a snapshot, have
// the ring that the others have, through removals and rotations.
func TestLoadGivesAnFSMItsHistory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 3)
		for _, h := range hosts {
			h.resume(t, &app{}, true) // there is nothing to load yet
			h.openKeyring(t)
		}
		leader := leaderOf(t, hosts)
		gone := leader.keyring.Keys()[0].ID
		if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := leader.keyring.Remove(t.Context(), gone, keyring.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		cluster := keyring.Ring(leader.fsm).Cluster
		for i, h := range hosts {
			leaderOf(t, hosts).snapshotted(t)
			if _, err := leaderOf(t, hosts).keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			h.stop(t)
			h.resume(t, &app{}, true)
			h.openKeyring(t)
			leader = leaderOf(t, hosts)
			leader.put(t, fmt.Sprint("after restart ", i))
			time.Sleep(time.Minute)
			r := keyring.Ring(h.fsm)
			if r.Cluster != cluster || !r.WasRemoved(gone) || r.Active() == nil {
				t.Errorf("%s, restarted: %d keys, cluster %v, want %v", h.id, len(r.Keys), r.Cluster, cluster)
			}
			if !bytes.Equal(snapshotOf(t, h.fsm), snapshotOf(t, leader.fsm)) {
				t.Errorf("%s, restarted, has another ring than the leader", h.id)
			}
		}
	})
}

// onDisk is a store of snapshots in files, with one of each FSM, the newest last, and where they lie.
func onDisk(t *testing.T, rings ...raft.FSM) (store *raft.FileSnapshotStore, dir string) {
	t.Helper()
	dir = t.TempDir()
	store, err := raft.NewFileSnapshotStore(dir, 5, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("a")
	for i, f := range rings {
		sink, err := store.Create(1, uint64(100*(i+1)), 2, raft.Configuration{}, 1, trans)
		if err != nil {
			t.Fatal(err)
		}
		snap, err := f.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := snap.Persist(sink); err != nil {
			t.Fatal(err)
		}
	}
	return store, filepath.Join(dir, "snapshots")
}

// TestLoadTakesTheSnapshotThatRaftGoesOnFrom: no older one if that is damaged, for raft would not give
// the entries in between.
func TestLoadTakesTheSnapshotThatRaftGoesOnFrom(t *testing.T) {
	older, newer := founded(t), founded(t)
	entry := command(t, 50, meta.Command{Hold: &meta.Hold{Server: "a", Keystore: meta.KeystoreID{1}}})
	if err := newer.Apply(entry); err != nil {
		t.Fatal(err)
	}
	store, dir := onDisk(t, keyring.Mux(older, &app{}), keyring.Mux(newer, &app{lines: []string{"x"}}))
	f := keyring.NewFSM()
	if err := f.Load(store); err != nil || !bytes.Equal(snapshotOf(t, f), snapshotOf(t, newer)) {
		t.Errorf("%v: not the newest", err)
	}

	list, err := store.List()
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, list[0].ID, "state.bin")
	b, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1 // in the host's part, even
	if err := os.WriteFile(state, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f = keyring.NewFSM()
	if err := f.Load(store); err == nil || !strings.Contains(err.Error(), list[0].ID) || keyring.Ring(f).Active() != nil {
		t.Errorf("a damaged snapshot: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, list[0].ID)); err != nil {
		t.Fatal(err)
	}
	if err := f.Load(store); err != nil || !bytes.Equal(snapshotOf(t, f), snapshotOf(t, older)) {
		t.Errorf("%v: not the older one, once it is the newest", err)
	}
}

func TestLoadChecksTheSection(t *testing.T) {
	snaps := raft.NewInmemSnapshotStore() // has no checksum
	_, trans := raft.NewInmemTransport("a")
	sink, err := snaps.Create(1, 10, 2, raft.Configuration{}, 1, trans)
	if err != nil {
		t.Fatal(err)
	}
	b := snapshotOf(t, founded(t))
	b[len(b)-2] ^= 1
	if _, err := sink.Write(b); err != nil {
		t.Fatal(err)
	}
	f := keyring.NewFSM()
	if err := f.Load(snaps); !errors.Is(err, keyring.ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func TestLoadOfASnapshotFromBeforeTheMuxIsEmpty(t *testing.T) {
	store, _ := onDisk(t, &app{lines: []string{"the host's alone"}})
	f := keyring.NewFSM()
	if err := f.Load(store); err != nil || len(keyring.Ring(f).Keys) > 0 {
		t.Errorf("%v", err)
	}
}

// TestLoadComesBeforeRaft: later it would take the ring back to the snapshot.
func TestLoadComesBeforeRaft(t *testing.T) {
	store, _ := onDisk(t, keyring.Mux(founded(t), &app{}))
	for name, give := range map[string]func(*keyring.FSM, raft.FSM){
		"an entry of the keyring's": func(f *keyring.FSM, _ raft.FSM) {
			f.Apply(command(t, 5, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{9}}}))
		},
		"an entry of the host's": func(_ *keyring.FSM, m raft.FSM) { m.Apply(&raft.Log{Index: 5, Type: raft.LogCommand}) },
		"a configuration":        func(f *keyring.FSM, _ raft.FSM) { f.StoreConfiguration(5, raft.Configuration{}) },
	} {
		f := keyring.NewFSM()
		m := keyring.Mux(f, &app{})
		give(f, m)
		before := keyring.Ring(f)
		if err := f.Load(store); err == nil || !strings.Contains(err.Error(), "before raft.NewRaft") || keyring.Ring(f) != before {
			t.Errorf("after %s: %v", name, err)
		}
	}
}

// TestWhatIsLoadedIsNotAppliedAgain: entries from before the snapshot are in it, from wherever they come.
func TestWhatIsLoadedIsNotAppliedAgain(t *testing.T) {
	source := founded(t)
	store, _ := onDisk(t, keyring.Mux(source, &app{}))
	f := keyring.NewFSM()
	if err := f.Load(store); err != nil {
		t.Fatal(err)
	}
	hold := func(index uint64) *raft.Log {
		return command(t, index, meta.Command{Hold: &meta.Hold{Server: "late", Keystore: meta.KeystoreID{byte(index)}}})
	}
	if err := f.Apply(hold(100)); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(snapshotOf(t, f), snapshotOf(t, source)) {
		t.Error("an entry that the snapshot has was applied again")
	}
	if err := f.Apply(hold(101)); err != nil {
		t.Error(err)
	}
	if ks, _ := keyring.Ring(f).Keystore("late"); ks != (meta.KeystoreID{101}) {
		t.Errorf("the entry after the snapshot was not applied: %v", ks)
	}
}

// TestAppOnDiskIsGivenASnapshotThatHasNothingOfIt: it has records from before the start, and the cluster has
// none by then.
func TestAppOnDiskIsGivenASnapshotThatHasNothingOfIt(t *testing.T) {
	nothing := snapshotOf(t, keyring.Mux(founded(t), &app{}))
	files, _ := onDisk(t, keyring.Mux(founded(t), &app{lines: []string{"old"}}))
	for name, store := range map[string]raft.SnapshotStore{
		"goes on from a snapshot": files,
		"goes on from the log":    raft.NewInmemSnapshotStore(),
	} {
		f, onDisk := keyring.NewFSM(), &app{lines: []string{"old"}}
		if err := f.Load(store); err != nil {
			t.Fatal(err)
		}
		if err := keyring.Mux(f, onDisk).Restore(io.NopCloser(bytes.NewReader(nothing))); err != nil || onDisk.text() != "" {
			t.Errorf("%s: the host has %q, %v", name, onDisk.text(), err)
		}
	}
}
