package keyring_test

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
	"example.com/keyring/internal/simulated"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// upgraded is a host whose log and snapshots are in files, and which begins without the Mux.
type upgraded struct {
	*host
	dir   string
	app   *app
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
	for _, o := range *u.all {
		if o != u.host {
			u.trans.Connect(raft.ServerAddress(o.id), o.trans)
			o.trans.Connect(raft.ServerAddress(u.id), u.trans)
		}
	}
	u.app = &app{}
	fsm := raft.FSM(u.app)
	if muxed {
		u.fsm = keyring.NewFSM()
		fsm = keyring.Mux(u.fsm, u.app)
	}
	if u.raft, err = raft.NewRaft(u.conf, fsm, u.store, u.store, u.files, u.trans); err != nil {
		t.Fatal(err)
	}
	if !muxed {
		return
	}
	fsys, err := u.disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	cfg := keyring.Config{ // and nothing says that the others are at this build
		ID: u.id, Dir: "simulated", Raft: u.raft, FSM: u.fsm, Transport: calls{u.host},
		KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	if u.keyring, err = keyring.Open(simulated.WithDisk(t.Context(), fsys), cfg); err != nil {
		t.Fatal(err)
	}
	u.serving.Store(u.keyring)
}

func (u *upgraded) end(t *testing.T) {
	t.Helper()
	u.stop(t)
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
	for u.raft.State() != raft.Leader || u.raft.VerifyLeader().Error() != nil {
		for _, o := range r.servers {
			if o.raft != nil && o.raft.State() == raft.Leader {
				_ = o.raft.LeadershipTransferToServer(u.id, raft.ServerAddress(u.id)).Error() // it is tried again
			}
		}
		time.Sleep(time.Second) // virtual
	}
}

func (r *rolling) put(leader *upgraded) {
	r.Helper()
	line := fmt.Sprint("entry ", len(r.puts))
	if err := leader.raft.Apply([]byte(line), 0).Error(); err != nil {
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
	if err := leader.raft.Snapshot().Error(); err != nil {
		r.Fatal(err)
	}
	r.put(leader)
	sent, _ := leader.store.FirstIndex()
	u.start(r.T, muxed)
	time.Sleep(time.Minute) // virtual
	list, err := u.files.List()
	if err != nil || len(list) == 0 || list[0].Index < sent-1 {
		r.Fatalf("%s was sent no snapshot (%v)", u.id, err)
	}
	if got := u.app.text(); got != strings.Join(r.puts, "\n") {
		r.Errorf("%s, muxed: %v, has from %s\n%q", u.id, muxed, leader.id, got)
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
				for _, h := range newHosts(t, 3) {
					r.servers = append(r.servers, &upgraded{host: h, dir: t.TempDir()})
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
				if err := first.raft.Snapshot().Error(); err != nil {
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
					if err := u.keyring.WaitReady(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				r.lead(first)
				sealed, err := first.keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				r.put(first)
				for _, u := range r.servers {
					r.getsASnapshot(u, r.servers[(1+indexOf(r.servers, u))%3], true)
					if got, err := u.keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
						t.Errorf("%s: %q, %v", u.id, got, err)
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
			r.Errorf("%s: %d entries of the keyring's before all have the Mux", u.id, n)
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
		conf.Servers = append(conf.Servers, raft.Server{ID: o.id, Address: raft.ServerAddress(o.id)})
	}
	if err := raft.BootstrapCluster(u.conf, log, log, raft.NewInmemSnapshotStore(), u.trans, conf); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotBeforeTheFoundingIsTheHosts: to the byte, so that a server without the Mux can read it.
func TestSnapshotBeforeTheFoundingIsTheHosts(t *testing.T) {
	for _, text := range []string{"", "a", "fifteen bytes..", "sixteen bytes...", "a longer one than the first bytes of a section"} {
		a := &app{}
		if text != "" {
			a.lines = []string{text}
		}
		if got := snapshotOf(t, keyring.Mux(keyring.NewFSM(), a)); string(got) != text {
			t.Errorf("%q is written as %q", text, got)
		}
	}
}

// dribbling writes its snapshot a byte at a time, and leaves it to raft to close the sink.
type dribbling struct{ *app }

func (d dribbling) Snapshot() (raft.FSMSnapshot, error) { return dribble{d.text(), false}, nil }

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
	forged := string(snapshotOf(t, founded(t)))
	for _, text := range []string{forged, forged[:len(forged)-1], forged[:20], "keyring-snapshot", "keyring-snapsho"} {
		for _, dribbles := range []bool{false, true} {
			a := &app{lines: []string{text}}
			fsm := raft.FSM(a)
			if dribbles {
				fsm = dribbling{a}
			}
			snap, err := keyring.Mux(keyring.NewFSM(), fsm).Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			var s sink
			if err := snap.Persist(&s); err != nil {
				t.Fatal(err)
			}
			back, keys := &app{}, keyring.NewFSM()
			if err := restore(keyring.Mux(keys, back), s.buf.Bytes()); err != nil || back.text() != text {
				t.Errorf("of %q comes back %q, %v", text, back.text(), err)
			}
			if keyring.Ring(keys).Cluster != keyring.Ring(keyring.NewFSM()).Cluster {
				t.Error("the keyring has what the host wrote")
			}
		}
	}
}

func TestHostsSnapshotBeforeTheFoundingEndsTheSinkOnce(t *testing.T) {
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
		snap, err := keyring.Mux(keyring.NewFSM(), &app{lines: []string{c.text}, persisted: c.persisted}).Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		s := sink{limit: c.limit}
		if err := snap.Persist(&s); err == nil || s.closed > 0 {
			t.Errorf("%s: %v, closed %d times", name, err, s.closed)
		}
	}
}

// marshalling is a host's FSM whose snapshots are JSON, and so never empty.
type marshalling struct {
	*app
	asked int
}

func (m *marshalling) Snapshot() (raft.FSMSnapshot, error) {
	b, err := json.Marshal(m.lines)
	return dribble{string(b), true}, err
}

func (m *marshalling) Restore(rc io.ReadCloser) error {
	m.asked++
	b, err := io.ReadAll(rc)
	return errors.Join(err, json.Unmarshal(b, &m.lines), rc.Close())
}

// decoding answers io.EOF where there is nothing, and writes nothing.
type decoding struct{ *app }

func (d decoding) Restore(rc io.ReadCloser) error { return json.NewDecoder(rc).Decode(&d.lines) }

// TestAppThatIsNewHasNothingToRestore: what the keyring alone has written has nothing of an app's in it.
func TestAppThatIsNewHasNothingToRestore(t *testing.T) {
	alone := snapshotOf(t, founded(t))
	m := &marshalling{app: &app{}}
	keys := keyring.NewFSM()
	if err := restore(keyring.Mux(keys, m), alone); err != nil || m.asked > 0 || keyring.Ring(keys).Active() == nil {
		t.Errorf("JSON: %v, asked to restore nothing %d times", err, m.asked)
	}
	if err := restore(keyring.Mux(keyring.NewFSM(), decoding{&app{}}), alone); err != nil {
		t.Errorf("an FSM that says io.EOF: %v", err)
	}
	refuses := &app{restored: errDiskFull}
	if err := restore(keyring.Mux(keyring.NewFSM(), refuses), alone); !errors.Is(err, errDiskFull) {
		t.Errorf("an FSM that can't restore: %v", err)
	}
}

// TestAppRestoresASnapshotOfNoBytes: one that writes such, at its start and later, and each that has had
// something.
func TestAppRestoresASnapshotOfNoBytes(t *testing.T) {
	empty := snapshotOf(t, keyring.Mux(founded(t), &app{}))
	onDisk := &app{} // as one on disk: it has what it had, and is told that there is nothing
	m := keyring.Mux(keyring.NewFSM(), onDisk)
	if err := restore(m, empty); err != nil {
		t.Fatal(err)
	}
	m.Apply(&raft.Log{Index: 9, Type: raft.LogCommand, Data: []byte("later")})
	if err := restore(m, empty); err != nil || onDisk.text() != "" {
		t.Errorf("%v: the host still has %q", err, onDisk.text())
	}
	for name, give := range map[string]func(raft.FSM) error{
		"an entry": func(m raft.FSM) error {
			m.Apply(&raft.Log{Index: 9, Type: raft.LogCommand, Data: []byte("x")})
			return nil
		},
		"a snapshot": func(m raft.FSM) error {
			return restore(m, snapshotOf(t, keyring.Mux(founded(t), &marshalling{app: &app{}})))
		},
	} {
		used := &marshalling{app: &app{}}
		m := keyring.Mux(keyring.NewFSM(), used)
		if err := give(m); err != nil {
			t.Fatal(err)
		}
		if err := restore(m, empty); err == nil {
			t.Errorf("an FSM that has had %s is left with what it had: %q", name, used.lines)
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
		if _, err := n.Keyring().Backup(ctx, io.Discard, newIdentity(t).Recipient()); err != nil { // makes a snapshot
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
	restarted(&marshalling{app: &app{}}, func(n *node.Node) {
		if _, err := n.Apply(ctx, []byte("line")); err != nil {
			t.Fatal(err)
		}
		backup(n)
	})
	again := &marshalling{app: &app{}}
	restarted(again, func(n *node.Node) {
		if again.asked != 1 || again.text() != "line" {
			t.Errorf("the app has %q, restored %d times", again.text(), again.asked)
		}
		if _, err := n.Decrypt(ctx, sealed.Bytes(), nil); err != nil {
			t.Error(err)
		}
	})
}
