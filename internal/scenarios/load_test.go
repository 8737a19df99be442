package scenarios_test

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
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// TestOpenRefusesAnFSMThatLacksItsHistory: whenever it is called, and whatever raft has done meanwhile.
func TestOpenRefusesAnFSMThatLacksItsHistory(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]func(t *testing.T, h, leader *keyringtest.Host){
		"before the first entry": func(*testing.T, *keyringtest.Host, *keyringtest.Host) {},
		"after some of the host's": func(t *testing.T, h, leader *keyringtest.Host) {
			leader.Put(t, "more")
			time.Sleep(time.Minute)
		},
		"after one of the keyring's": func(t *testing.T, h, leader *keyringtest.Host) {
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		},
		"after another snapshot": func(t *testing.T, h, leader *keyringtest.Host) {
			leader.Put(t, "more")
			time.Sleep(time.Minute)
			if err := h.Raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 3)
				for _, h := range hosts {
					h.Open(t, &keyringtest.App{})
				}
				leader := keyringtest.LeaderOf(t, hosts)
				sealed, err := leader.Keyring.Encrypt([]byte("x"), nil)
				if err != nil {
					t.Fatal(err)
				}
				leader.SnapshotAll(t)
				h := keyringtest.OtherHost(hosts, leader)
				h.Stop(t)
				if name == "before the first entry" {
					h.Conf.HeartbeatTimeout, h.Conf.ElectionTimeout = time.Hour, time.Hour
					leader.Trans.Disconnect(raft.ServerAddress(h.ID))
				}
				h.Resume(t, &keyringtest.App{}, false)
				between(t, h, leader)
				if err := h.Unopened(t); !errors.Is(err, keyring.ErrNotLoaded) || !strings.Contains(err.Error(), "snapshot at index") {
					t.Errorf("Open: %v", err)
				}
				if err := h.FSM.Admit(sealed); !errors.Is(err, keyring.ErrNotLoaded) {
					t.Errorf("Admit: %v", err)
				}
				leader.Put(t, "and more")
				time.Sleep(time.Minute)
				if err := h.Raft.Snapshot().Error(); name != "before the first entry" && (err == nil || !strings.Contains(err.Error(), keyring.ErrNotLoaded.Error())) {
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
		hosts := keyringtest.NewHosts(t, 3)
		for _, h := range hosts {
			h.Open(t, &keyringtest.App{})
		}
		leader := keyringtest.LeaderOf(t, hosts)
		var sealed [2][]byte
		for i := range sealed {
			if i == 1 {
				leader.SnapshotAll(t)
				h := keyringtest.OtherHost(hosts, leader)
				h.Stop(t)
				h.Resume(t, &keyringtest.App{}, false)
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
			}
			var err error
			if sealed[i], err = leader.Keyring.Encrypt([]byte("x"), nil); err != nil {
				t.Fatal(err)
			}
		}
		h := keyringtest.OtherHost(hosts, leader)
		for i, s := range sealed {
			if err := h.FSM.Admit(s); !errors.Is(err, keyring.ErrNotLoaded) || errors.Is(err, keyring.ErrStaleKey) {
				t.Errorf("under key %d: %v", i, err)
			}
		}
	})
}

// histories are the ways in which an FSM has all that raft applied, by what the last host that it returns has met.
var histories = map[string]func(t *testing.T, hosts []*keyringtest.Host) *keyringtest.Host{
	"a snapshot before the first Open": func(t *testing.T, hosts []*keyringtest.Host) *keyringtest.Host {
		for _, h := range hosts {
			h.Resume(t, &keyringtest.App{}, false)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		leader.SnapshotAll(t)
		return leader
	},
	"opened a second time on one FSM": func(t *testing.T, hosts []*keyringtest.Host) *keyringtest.Host {
		for _, h := range hosts {
			h.Resume(t, &keyringtest.App{}, false)
			h.OpenKeyring(t)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		leader.SnapshotAll(t)
		h := keyringtest.OtherHost(hosts, leader)
		h.Serving.Store(nil)
		if err := h.Keyring.Close(); err != nil {
			t.Fatal(err)
		}
		h.Keyring = nil
		return h
	},
	"a server that gets a snapshot": func(t *testing.T, hosts []*keyringtest.Host) *keyringtest.Host {
		for _, h := range hosts {
			h.Open(t, &keyringtest.App{})
		}
		leader := keyringtest.LeaderOf(t, hosts)
		leader.SnapshotAll(t)
		joiner := keyringtest.NewHost(t, "joiner", leader.All)
		joiner.Resume(t, &keyringtest.App{}, false)
		if err := leader.Raft.AddVoter(joiner.ID, raft.ServerAddress(joiner.ID), 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if list, err := joiner.Snaps.List(); err != nil || len(list) == 0 {
			t.Fatalf("the joiner was sent no snapshot (%v)", err)
		}
		return joiner
	},
	"a recovered cluster": func(t *testing.T, hosts []*keyringtest.Host) *keyringtest.Host {
		for _, h := range hosts {
			h.Open(t, &keyringtest.App{})
		}
		leader := keyringtest.LeaderOf(t, hosts)
		leader.Put(t, "some")
		for _, h := range hosts {
			h.Stop(t)
		}
		alone := raft.Configuration{Servers: []raft.Server{{ID: leader.ID, Address: raft.ServerAddress(leader.ID)}}}
		if err := raft.RecoverCluster(leader.Conf, keyring.Mux(keyring.NewFSM(), &keyringtest.App{}), leader.Log, leader.Log, leader.Snaps, leader.Trans, alone); err != nil {
			t.Fatal(err)
		}
		leader.Resume(t, &keyringtest.App{}, true)
		return leader
	},
}

// TestOpenTakesAnFSMThatHasItsHistory: a snapshot that was made, or came, since the start is no reason to
// refuse.
func TestOpenTakesAnFSMThatHasItsHistory(t *testing.T) {
	t.Parallel()
	for name, prepare := range histories {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 3)
				h := prepare(t, hosts)
				h.OpenKeyring(t)
				if h.Raft.Stats()["last_snapshot_index"] == "0" {
					t.Error("there is no snapshot: nothing was tried")
				}
				if name == "a snapshot before the first Open" {
					for _, o := range hosts {
						if o != h {
							o.OpenKeyring(t)
						}
					}
				}
				if err := h.Keyring.WaitReady(t.Context()); err != nil {
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
		hosts := keyringtest.NewHosts(t, 3)
		for _, h := range hosts {
			h.Resume(t, &keyringtest.App{}, true) // there is nothing to load yet
			h.OpenKeyring(t)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		gone := leader.Keyring.Keys()[0].ID
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := leader.Keyring.Remove(t.Context(), gone, keyring.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		cluster := keyringtest.Ring(leader.FSM).Cluster
		for i, h := range hosts {
			keyringtest.LeaderOf(t, hosts).SnapshotAll(t)
			if _, err := keyringtest.LeaderOf(t, hosts).Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
			h.Stop(t)
			h.Resume(t, &keyringtest.App{}, true)
			h.OpenKeyring(t)
			leader = keyringtest.LeaderOf(t, hosts)
			leader.Put(t, fmt.Sprint("after restart ", i))
			time.Sleep(time.Minute)
			r := keyringtest.Ring(h.FSM)
			if r.Cluster != cluster || !r.WasRemoved(meta.KeyID(gone)) || r.Active() == nil {
				t.Errorf("%s, restarted: %d keys, cluster %v, want %v", h.ID, len(r.Keys), r.Cluster, cluster)
			}
			if !bytes.Equal(keyringtest.SnapshotOf(t, h.FSM), keyringtest.SnapshotOf(t, leader.FSM)) {
				t.Errorf("%s, restarted, has another ring than the leader", h.ID)
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
	older, newer := keyringtest.FilledFSM(t), keyringtest.FilledFSM(t)
	entry := keyringtest.LogEntry(t, 50, meta.Command{Hold: &meta.Hold{Server: "a", Keystore: meta.KeystoreID{1}}})
	if err := newer.Apply(entry); err != nil {
		t.Fatal(err)
	}
	store, dir := onDisk(t, keyring.Mux(older, &keyringtest.App{}), keyring.Mux(newer, &keyringtest.App{Lines: []string{"x"}}))
	f := keyring.NewFSM()
	if err := f.Load(store); err != nil || !bytes.Equal(keyringtest.SnapshotOf(t, f), keyringtest.SnapshotOf(t, newer)) {
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
	if err := f.Load(store); err == nil || !strings.Contains(err.Error(), list[0].ID) || keyringtest.Ring(f).Active() != nil {
		t.Errorf("a damaged snapshot: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, list[0].ID)); err != nil {
		t.Fatal(err)
	}
	if err := f.Load(store); err != nil || !bytes.Equal(keyringtest.SnapshotOf(t, f), keyringtest.SnapshotOf(t, older)) {
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
	b := keyringtest.SnapshotOf(t, keyringtest.FilledFSM(t))
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
	store, _ := onDisk(t, &keyringtest.App{Lines: []string{"the host's alone"}})
	f := keyring.NewFSM()
	if err := f.Load(store); err != nil || len(keyringtest.Ring(f).Keys) > 0 {
		t.Errorf("%v", err)
	}
}

// TestLoadComesBeforeRaft: later it would take the ring back to the snapshot.
func TestLoadComesBeforeRaft(t *testing.T) {
	store, _ := onDisk(t, keyring.Mux(keyringtest.FilledFSM(t), &keyringtest.App{}))
	for name, give := range map[string]func(*keyring.FSM, raft.FSM){
		"an entry of the keyring's": func(f *keyring.FSM, _ raft.FSM) {
			f.Apply(keyringtest.LogEntry(t, 5, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{9}}}))
		},
		"an entry of the host's": func(_ *keyring.FSM, m raft.FSM) { m.Apply(&raft.Log{Index: 5, Type: raft.LogCommand}) },
		"a configuration":        func(f *keyring.FSM, _ raft.FSM) { f.StoreConfiguration(5, raft.Configuration{}) },
	} {
		f := keyring.NewFSM()
		m := keyring.Mux(f, &keyringtest.App{})
		give(f, m)
		before := keyringtest.SnapshotOf(t, f)
		if err := f.Load(store); err == nil || !strings.Contains(err.Error(), "before raft.NewRaft") || !bytes.Equal(keyringtest.SnapshotOf(t, f), before) {
			t.Errorf("after %s: %v", name, err)
		}
	}
}

// TestWhatIsLoadedIsNotAppliedAgain: entries from before the snapshot are in it, from wherever they come.
func TestWhatIsLoadedIsNotAppliedAgain(t *testing.T) {
	source := keyringtest.FilledFSM(t)
	store, _ := onDisk(t, keyring.Mux(source, &keyringtest.App{}))
	f := keyring.NewFSM()
	if err := f.Load(store); err != nil {
		t.Fatal(err)
	}
	hold := func(index uint64) *raft.Log {
		return keyringtest.LogEntry(t, index, meta.Command{Hold: &meta.Hold{Server: "late", Keystore: meta.KeystoreID{byte(index)}}})
	}
	if err := f.Apply(hold(100)); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(keyringtest.SnapshotOf(t, f), keyringtest.SnapshotOf(t, source)) {
		t.Error("an entry that the snapshot has was applied again")
	}
	if err := f.Apply(hold(101)); err != nil {
		t.Error(err)
	}
	if ks, _ := keyringtest.Ring(f).Keystore("late"); ks != (meta.KeystoreID{101}) {
		t.Errorf("the entry after the snapshot was not applied: %v", ks)
	}
}

// TestAppOnDiskIsGivenASnapshotThatHasNothingOfIt: it has records from before the start, and the cluster has
// none by then.
func TestAppOnDiskIsGivenASnapshotThatHasNothingOfIt(t *testing.T) {
	nothing := keyringtest.SnapshotOf(t, keyring.Mux(keyringtest.FilledFSM(t), &keyringtest.App{}))
	files, _ := onDisk(t, keyring.Mux(keyringtest.FilledFSM(t), &keyringtest.App{Lines: []string{"old"}}))
	for name, store := range map[string]raft.SnapshotStore{
		"goes on from a snapshot": files,
		"goes on from the log":    raft.NewInmemSnapshotStore(),
	} {
		f, onDisk := keyring.NewFSM(), &keyringtest.App{Lines: []string{"old"}}
		if err := f.Load(store); err != nil {
			t.Fatal(err)
		}
		if err := keyring.Mux(f, onDisk).Restore(io.NopCloser(bytes.NewReader(nothing))); err != nil || onDisk.Text() != "" {
			t.Errorf("%s: the host has %q, %v", name, onDisk.Text(), err)
		}
	}
}
