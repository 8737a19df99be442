package scenarios_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/simulated"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// upgraded is a host whose log and snapshots are in files, and which begins without the Mux.
type upgraded struct {
	*keyringtest.Host
	dir   string
	app   *keyringtest.App
	store *raftboltdb.BoltStore
	files *raft.FileSnapshotStore
}

// start starts raft from the files: with the Mux and the keyring, or with the host's FSM alone.
func (u *upgraded) start(t *testing.T, muxed bool) {
	t.Helper()
	var err error
	if u.store, err = raftboltdb.NewBoltStore(filepath.Join(u.dir, "raft.db")); err != nil {
		t.Fatal(err)
	}
	if u.files, err = raft.NewFileSnapshotStore(u.dir, 2, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, o := range *u.All {
		if o != u.Host {
			u.Trans.Connect(raft.ServerAddress(o.ID), o.Trans)
			o.Trans.Connect(raft.ServerAddress(u.ID), u.Trans)
		}
	}
	u.app = &keyringtest.App{}
	fsm := raft.FSM(u.app)
	if muxed {
		u.FSM = keyring.NewFSM()
		fsm = keyring.Mux(u.FSM, u.app)
	}
	if u.Raft, err = raft.NewRaft(u.Conf, fsm, u.store, u.store, u.files, u.Trans); err != nil {
		t.Fatal(err)
	}
	if !muxed {
		return
	}
	fsys, err := u.Disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	cfg := keyring.Config{ // and nothing says that the others are at this build
		ID: u.ID, Dir: "simulated", Raft: u.Raft, FSM: u.FSM, Transport: keyringtest.HostCalls{From: u.Host},
		KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	if u.Keyring, err = keyring.Open(simulated.WithDisk(t.Context(), fsys), cfg); err != nil {
		t.Fatal(err)
	}
	u.Serving.Store(u.Keyring)
}

func (u *upgraded) end(t *testing.T) {
	t.Helper()
	u.Stop(t)
	if err := u.store.Close(); err != nil {
		t.Error(err)
	}
}

// marked counts the entries of the keyring's in the log.
func (u *upgraded) marked(t *testing.T) (n int) {
	t.Helper()
	first, _ := u.store.FirstIndex()
	last, _ := u.store.LastIndex()
	for i := first; i <= last; i++ {
		var l raft.Log
		if err := u.store.GetLog(i, &l); err != nil && !errors.Is(err, raft.ErrLogNotFound) { // what a snapshot stands for
			t.Fatal(err)
		}
		if len(l.Extensions) > 0 {
			n++
		}
	}
	return n
}

// rolling is a cluster of three in the middle of an upgrade to the Mux.
type rolling struct {
	*testing.T
	servers []*upgraded
	puts    []string
}

// lead makes a server the leader.
func (r *rolling) lead(u *upgraded) {
	r.Helper()
	for u.Raft.State() != raft.Leader || u.Raft.VerifyLeader().Error() != nil {
		for _, o := range r.servers {
			if o.Raft != nil && o.Raft.State() == raft.Leader {
				_ = o.Raft.LeadershipTransferToServer(u.ID, raft.ServerAddress(u.ID)).Error() // it is tried again
			}
		}
		time.Sleep(time.Second) // virtual
	}
}

func (r *rolling) put(leader *upgraded) {
	r.Helper()
	line := fmt.Sprint("entry ", len(r.puts))
	if err := leader.Raft.Apply([]byte(line), 0).Error(); err != nil {
		r.Fatal(err)
	}
	r.puts = append(r.puts, line)
}

// getsASnapshot has a server that was away for a while get a snapshot from that leader.
func (r *rolling) getsASnapshot(u, leader *upgraded, muxed bool) {
	r.Helper()
	r.lead(leader)
	u.end(r.T)
	for range 5 {
		r.put(leader)
	}
	if err := leader.Raft.Snapshot().Error(); err != nil {
		r.Fatal(err)
	}
	r.put(leader)
	sent, _ := leader.store.FirstIndex()
	u.start(r.T, muxed)
	time.Sleep(time.Minute) // virtual
	list, err := u.files.List()
	if err != nil || len(list) == 0 || list[0].Index < sent-1 {
		r.Fatalf("%s was sent no snapshot (%v)", u.ID, err)
	}
	if got := u.app.Text(); got != strings.Join(r.puts, "\n") {
		r.Errorf("%s, muxed: %v, has from %s\n%q", u.ID, muxed, leader.ID, got)
	}
}

// TestRollingUpgradeToTheMux: from the files of a host that had no Mux, in both orders, with leaders of
// either build, which send each other's servers snapshots. Nothing of the keyring's is in raft before the
// last server has the Mux.
func TestRollingUpgradeToTheMux(t *testing.T) {
	t.Parallel()
	for name, order := range map[string][]int{"the leader first": {0, 1, 2}, "the leader last": {2, 1, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &rolling{T: t}
				for _, h := range keyringtest.NewHosts(t, 3) {
					r.servers = append(r.servers, &upgraded{Host: h, dir: t.TempDir()})
				}
				for _, u := range r.servers {
					bootstrapped(t, u, r.servers)
					u.start(t, false)
				}
				first := r.servers[0]
				r.lead(first)
				for range 5 {
					r.put(first)
				}
				if err := first.Raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				muxed := map[*upgraded]bool{}
				for _, i := range order {
					u := r.servers[i]
					u.end(t)
					muxed[u] = true
					u.start(t, true)
					r.mix(muxed)
				}
				for _, u := range r.servers {
					if err := u.Keyring.WaitReady(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				r.lead(first)
				sealed, err := first.Keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				r.put(first)
				for _, u := range r.servers {
					r.getsASnapshot(u, r.servers[(1+indexOf(r.servers, u))%3], true)
					if got, err := u.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
						t.Errorf("%s: %q, %v", u.ID, got, err)
					}
				}
				for _, u := range r.servers {
					u.end(t)
				}
			})
		})
	}
}

// mix has each server that is not upgraded get a snapshot from one that is, and the other way round.
func (r *rolling) mix(muxed map[*upgraded]bool) {
	r.Helper()
	if len(muxed) == len(r.servers) {
		return
	}
	for _, u := range r.servers {
		for _, leader := range r.servers {
			if muxed[u] != muxed[leader] {
				r.getsASnapshot(u, leader, muxed[u])
			}
		}
	}
	for _, u := range r.servers {
		if n := u.marked(r.T); n > 0 {
			r.Errorf("%s: %d entries of the keyring's before all have the Mux", u.ID, n)
		}
	}
}

func indexOf(all []*upgraded, one *upgraded) int {
	for i, u := range all {
		if u == one {
			return i
		}
	}
	return -1
}

// bootstrapped writes the first entry of a server's log.
func bootstrapped(t *testing.T, u *upgraded, all []*upgraded) {
	t.Helper()
	log, err := raftboltdb.NewBoltStore(filepath.Join(u.dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	var conf raft.Configuration
	for _, o := range all {
		conf.Servers = append(conf.Servers, raft.Server{ID: o.ID, Address: raft.ServerAddress(o.ID)})
	}
	if err := raft.BootstrapCluster(u.Conf, log, log, raft.NewInmemSnapshotStore(), u.Trans, conf); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotBeforeTheBootstrapIsTheHosts: to the byte, so that a server without the Mux can read it.
func TestSnapshotBeforeTheBootstrapIsTheHosts(t *testing.T) {
	for _, text := range []string{"", "a", "fifteen bytes..", "sixteen bytes...", "a longer one than the first bytes of a section"} {
		a := &keyringtest.App{}
		if text != "" {
			a.Lines = []string{text}
		}
		if got := keyringtest.SnapshotOf(t, keyring.Mux(keyring.NewFSM(), a)); string(got) != text {
			t.Errorf("%q is written as %q", text, got)
		}
	}
}

// dribbling writes its snapshot a byte at a time, and leaves it to raft to close the sink.
type dribbling struct{ *keyringtest.App }

func (d dribbling) Snapshot() (raft.FSMSnapshot, error) { return dribble{d.Text(), false}, nil }

type dribble struct {
	text   string
	closes bool
}

func (d dribble) Persist(sink raft.SnapshotSink) error {
	_, err := io.Copy(onlyWriter{sink}, iotest.OneByteReader(strings.NewReader(d.text)))
	if err == nil && d.closes {
		return sink.Close()
	}
	return err
}

func (dribble) Release() {}

type onlyWriter struct{ io.Writer }

// TestHostsSnapshotThatSpellsASectionIsTheHosts: what the host's users have stored is never taken for
// metadata of the keyring's.
func TestHostsSnapshotThatSpellsASectionIsTheHosts(t *testing.T) {
	forged := string(keyringtest.SnapshotOf(t, keyringtest.FilledFSM(t)))
	for _, text := range []string{forged, forged[:len(forged)-1], forged[:20], "keyring-snapshot", "keyring-snapsho"} {
		for _, dribbles := range []bool{false, true} {
			a := &keyringtest.App{Lines: []string{text}}
			fsm := raft.FSM(a)
			if dribbles {
				fsm = dribbling{a}
			}
			snap, err := keyring.Mux(keyring.NewFSM(), fsm).Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			var s keyringtest.Sink
			if err := snap.Persist(&s); err != nil {
				t.Fatal(err)
			}
			back, keys := &keyringtest.App{}, keyring.NewFSM()
			if err := keyringtest.RestoreFSM(keyring.Mux(keys, back), s.Buf.Bytes()); err != nil || back.Text() != text {
				t.Errorf("of %q comes back %q, %v", text, back.Text(), err)
			}
			if keyringtest.Ring(keys).Cluster != keyringtest.Ring(keyring.NewFSM()).Cluster {
				t.Error("the keyring has what the host wrote")
			}
		}
	}
}

func TestHostsSnapshotBeforeTheBootstrapEndsTheSinkOnce(t *testing.T) {
	no := errors.New("no")
	for name, c := range map[string]struct {
		text      string
		persisted error
		limit     int
	}{
		"the host's Persist fails":    {"line", no, 0},
		"a short one has no room":     {"line", nil, 2},
		"a long one has no room":      {strings.Repeat("line", 10), nil, 2},
		"its section has no room":     {"keyring-snapshot", nil, 10},
		"what follows it has no room": {"keyring-snapshot", nil, 80},
	} {
		snap, err := keyring.Mux(keyring.NewFSM(), &keyringtest.App{Lines: []string{c.text}, Persisted: c.persisted}).Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		s := keyringtest.Sink{Limit: c.limit}
		if err := snap.Persist(&s); err == nil || s.Closed > 0 {
			t.Errorf("%s: %v, closed %d times", name, err, s.Closed)
		}
	}
}

// marshalling is a host's FSM whose snapshots are JSON, and so never empty.
type marshalling struct {
	*keyringtest.App
	asked int
}

func (m *marshalling) Snapshot() (raft.FSMSnapshot, error) {
	b, err := json.Marshal(m.Lines)
	return dribble{string(b), true}, err
}

func (m *marshalling) Restore(rc io.ReadCloser) error {
	m.asked++
	b, err := io.ReadAll(rc)
	return errors.Join(err, json.Unmarshal(b, &m.Lines), rc.Close())
}

// decoding answers io.EOF where there is nothing, and writes nothing.
type decoding struct{ *keyringtest.App }

func (d decoding) Restore(rc io.ReadCloser) error { return json.NewDecoder(rc).Decode(&d.Lines) }

// TestAppThatIsNewHasNothingToRestore: what the keyring alone has written has nothing of an app's in it.
func TestAppThatIsNewHasNothingToRestore(t *testing.T) {
	alone := keyringtest.SnapshotOf(t, keyringtest.FilledFSM(t))
	m := &marshalling{App: &keyringtest.App{}}
	keys := keyring.NewFSM()
	if err := keyringtest.RestoreFSM(keyring.Mux(keys, m), alone); err != nil || m.asked > 0 || keyringtest.Ring(keys).Active() == nil {
		t.Errorf("JSON: %v, asked to restore nothing %d times", err, m.asked)
	}
	if err := keyringtest.RestoreFSM(keyring.Mux(keyring.NewFSM(), decoding{&keyringtest.App{}}), alone); err != nil {
		t.Errorf("an FSM that says io.EOF: %v", err)
	}
	refuses := &keyringtest.App{Restored: keyringtest.ErrDiskFull}
	if err := keyringtest.RestoreFSM(keyring.Mux(keyring.NewFSM(), refuses), alone); !errors.Is(err, keyringtest.ErrDiskFull) {
		t.Errorf("an FSM that can't restore: %v", err)
	}
}

// TestAppRestoresASnapshotOfNoBytes: one that writes such, at its start and later, and each that has had
// something.
func TestAppRestoresASnapshotOfNoBytes(t *testing.T) {
	empty := keyringtest.SnapshotOf(t, keyring.Mux(keyringtest.FilledFSM(t), &keyringtest.App{}))
	onDisk := &keyringtest.App{} // as one on disk: it has what it had, and is told that there is nothing
	m := keyring.Mux(keyring.NewFSM(), onDisk)
	if err := keyringtest.RestoreFSM(m, empty); err != nil {
		t.Fatal(err)
	}
	m.Apply(&raft.Log{Index: 9, Type: raft.LogCommand, Data: []byte("later")})
	if err := keyringtest.RestoreFSM(m, empty); err != nil || onDisk.Text() != "" {
		t.Errorf("%v: the host still has %q", err, onDisk.Text())
	}
	for name, give := range map[string]func(raft.FSM) error{
		"an entry": func(m raft.FSM) error {
			m.Apply(&raft.Log{Index: 9, Type: raft.LogCommand, Data: []byte("x")})
			return nil
		},
		"a snapshot": func(m raft.FSM) error {
			return keyringtest.RestoreFSM(m, keyringtest.SnapshotOf(t, keyring.Mux(keyringtest.FilledFSM(t), &marshalling{App: &keyringtest.App{}})))
		},
	} {
		used := &marshalling{App: &keyringtest.App{}}
		m := keyring.Mux(keyring.NewFSM(), used)
		if err := give(m); err != nil {
			t.Fatal(err)
		}
		if err := keyringtest.RestoreFSM(m, empty); err == nil {
			t.Errorf("an FSM that has had %s is left with what it had: %q", name, used.Lines)
		}
	}
}

// TestAppIsAddedToANode: to one that has a snapshot of the keyring's alone, and which starts again then.
func TestAppIsAddedToANode(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}}
	restarted := func(app raft.FSM, do func(*node.Node)) {
		t.Helper()
		cfg.App = app
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Keyring().WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		do(n)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var sealed bytes.Buffer
	backup := func(n *node.Node) {
		if _, err := n.Keyring().Backup(ctx, io.Discard, kektest.Identity(t).Recipient()); err != nil { // makes a snapshot
			t.Fatal(err)
		}
	}
	restarted(nil, func(n *node.Node) {
		b, err := n.Encrypt(ctx, []byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		sealed.Write(b)
		backup(n)
	})
	restarted(&marshalling{App: &keyringtest.App{}}, func(n *node.Node) {
		if _, err := n.Apply(ctx, []byte("line")); err != nil {
			t.Fatal(err)
		}
		backup(n)
	})
	again := &marshalling{App: &keyringtest.App{}}
	restarted(again, func(n *node.Node) {
		if again.asked != 1 || again.Text() != "line" {
			t.Errorf("the app has %q, restored %d times", again.Text(), again.asked)
		}
		if _, err := n.Decrypt(ctx, sealed.Bytes(), nil); err != nil {
			t.Error(err)
		}
	})
}
