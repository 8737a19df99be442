package keyring_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// callsOfKeyring are all methods of Keyring that take a context. inactive is a key, and there is a
// prepublished one too.
func callsOfKeyring(s *keyringtest.Server, other raft.ServerID, inactive, prepublished keyring.KeyID, to age.Recipient) map[string]func(context.Context) error {
	k := s.Keyring
	request, err := peer.Request{Ask: &peer.AskRequest{IDs: []peer.ID{peer.ID(inactive)}}}.Encode()
	stays := keyring.AddServerOptions{MayMove: func(context.Context, raft.Server) error { return errors.New("it stays") }}
	return map[string]func(context.Context) error{
		"AcceptJoin":  func(ctx context.Context) error { return k.AcceptJoin(ctx, keyring.JoinConn{}, "", nil) },
		"AddVoter":    func(ctx context.Context) error { return k.AddVoter(ctx, other, "elsewhere", stays) },
		"AddNonvoter": func(ctx context.Context) error { return k.AddNonvoter(ctx, other, raft.ServerAddress(other), stays) },
		"AddServer":   func(ctx context.Context) error { return k.AddServer(ctx, other, "elsewhere", stays) },
		"Adopt":       func(ctx context.Context) error { return k.Adopt(ctx, keyringtest.NewKeyID()) },
		"Backup":      func(ctx context.Context) error { _, err := k.Backup(ctx, io.Discard, to); return err },
		"ConfirmBackup": func(ctx context.Context) error {
			m, err := k.WriteBackup(ctx, io.Discard, to)
			return errors.Join(err, k.ConfirmBackup(ctx, m.SHA256))
		},
		"CheckMembers": func(ctx context.Context) error { return k.CheckMembers(ctx, []raft.ServerID{s.ID, other}) },
		"EncryptTo": func(ctx context.Context) error {
			return k.EncryptTo(ctx, nil, nil, func(ctx context.Context, _ []byte) error { return ctx.Err() })
		},
		"MakeJoinToken":        func(ctx context.Context) error { _, err := k.MakeJoinToken(ctx, "s9", 0); return err },
		"DemoteServer":         func(ctx context.Context) error { return k.DemoteServer(ctx, s.ID) },
		"PromoteServer":        func(ctx context.Context) error { return k.PromoteServer(ctx, other) },
		"PromoteServers":       func(ctx context.Context) error { return k.PromoteServers(ctx) },
		"Leave":                func(ctx context.Context) error { return k.Leave(ctx) },
		"TransferLeadershipTo": func(ctx context.Context) error { return k.TransferLeadershipTo(ctx, s.ID) },
		"TransferLeadership":   func(ctx context.Context) error { return k.TransferLeadership(ctx) },
		"ReadmitServer":        func(ctx context.Context) error { return k.ReadmitServer(ctx, "s9", "s9") },
		"RemoveServer":         func(ctx context.Context) error { return k.RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}) },
		"Remove": func(ctx context.Context) error {
			return errors.Join(k.Remove(ctx, prepublished, keyring.RemoveOptions{}), k.Remove(ctx, inactive, keyring.RemoveOptions{Force: true}))
		},
		"Rewrap":    func(ctx context.Context) error { return k.Rewrap(ctx) },
		"RewrapAll": func(ctx context.Context) error { return k.RewrapAll(ctx) },
		"Rotate":    func(ctx context.Context) error { _, err := k.Rotate(ctx, keyring.RotateOptions{}); return err },
		"ServePeer": func(ctx context.Context) error { _, e := k.ServePeer(ctx, other, request); return errors.Join(err, e) },
		"StartRemoval": func(ctx context.Context) error {
			_, err := k.StartRemoval(ctx, inactive, keyring.RemoveOptions{Force: true})
			return err
		},
		"Status":      func(ctx context.Context) error { _, err := k.Status(ctx); return err },
		"WaitReady":   func(ctx context.Context) error { return k.WaitReady(ctx) },
		"WaitRemoved": func(ctx context.Context) error { return k.WaitRemoved(ctx, inactive) },
		"WaitRotated": func(ctx context.Context) error { _, err := k.WaitRotated(ctx, prepublished); return err },
		"WriteBackup": func(ctx context.Context) error { _, err := k.WriteBackup(ctx, io.Discard, to); return err },
		"WithdrawJoinToken": func(ctx context.Context) error {
			return k.WithdrawJoinToken(ctx, strings.Repeat("0", 32))
		},
	}
}

// TestEveryCallOfAKeyringEndsWithItsContext whatever hangs, and Close when nothing hangs any more.
func TestEveryCallOfAKeyringEndsWithItsContext(t *testing.T) {
	t.Parallel()
	wantCalls(t, ".", "Keyring", slices.Collect(maps.Keys(callsOfKeyring(&keyringtest.Server{}, "", keyring.KeyID{}, keyring.KeyID{}, nil))))
	for what, must := range map[string][]string{ // and what does not get by it
		"raft's log": {"Backup", "ConfirmBackup", "Remove", "Rotate", "WriteBackup"}, "the transport": {"Adopt", "CheckMembers"},
		"a KEK": {"Rotate"}, "the data": {"Remove"},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, identity := keyringtest.NewHang(), kektest.Identity(t)
				defer h.End()
				kek := keyringtest.HangingKEK{KEK: kektest.File(t, bytes.Repeat([]byte{7}, 32)), Hang: keyringtest.NewHang()}
				data := keyringtest.HangingData{Hang: keyringtest.NewHang()}
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.Rotation.Every, cfg.Data, cfg.KEKs = -1, data, []keyring.KEK{kek}
				}})
				leader := keyringtest.Ready(t, c)
				first := leader.Keyring.Keys()[0].ID
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				later, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				keyringtest.AwaitKeys(t, c)
				time.Sleep(time.Minute) // virtual
				kinds := map[string]string{"raft's log": "log", "the transport": "call"}
				c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
					if e.Server == leader && e.Kind == kinds[what] {
						h.Wait()
					}
					return keyringtest.Reply{}
				})
				switch what {
				case "a KEK":
					h = kek.Hang
				case "the data":
					h = data.Hang
				}
				h.On.Store(true)
				calls := callsOfKeyring(leader, keyringtest.Follower(c).ID, first, later.ID, identity.Recipient())
				handOver := map[string]int{"DemoteServer": 1, "TransferLeadership": 1, "Leave": 2} // they come last: the others are for the leader
				for _, name := range slices.SortedFunc(maps.Keys(calls), func(a, b string) int {
					return cmp.Or(handOver[a]-handOver[b], strings.Compare(a, b))
				}) {
					wantEnds(t, name, calls[name], slices.Contains(must, name))
				}
				h.End()
				time.Sleep(time.Minute) // virtual
				for _, s := range c.Servers {
					if err := s.Keyring.Close(); err != nil {
						t.Errorf("%s: close: %v", s.ID, err)
					}
				}
			})
		})
	}
}

// wantEnds makes a call of 5 virtual seconds, which waits for all of them if it must.
func wantEnds(t *testing.T, name string, call func(context.Context) error, waits bool) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	err := call(ctx)
	cancel()
	if took := time.Since(began); took > 5*time.Second+2*keyring.CallGrace {
		t.Errorf("%s: with 5 seconds it took %v: %v", name, took, err)
	} else if waits && took < 5*time.Second {
		t.Errorf("%s: it did not wait: %v", name, err)
	}
}

// TestCallsEndWithTheirContextsWhileADiskHangs, by the real clock: synctest's stands still while something waits
// for a lock.
func TestCallsEndWithTheirContextsWhileADiskHangs(t *testing.T) {
	t.Parallel()
	h := keyringtest.NewHang()
	defer h.End() // before the servers are stopped
	c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 2, Pace: 2 * time.Second, Configure: keyringtest.NoRotation})
	leader := keyringtest.Ready(t, c)
	first := leader.Keyring.Keys()[0].ID
	c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
		if e.Server == leader && e.Kind == "disk" {
			h.Wait()
		}
		return keyringtest.Reply{}
	})
	h.On.Store(true)
	calls := callsOfKeyring(leader, keyringtest.Follower(c).ID, first, first, kektest.Identity(t).Recipient())
	for _, name := range []string{"CheckMembers", "Rotate", "Rotate", "ServePeer"} {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := calls[name](ctx)
		cancel()
		if took := time.Since(began); took > 5*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: with 300 ms it took %v: %v", name, took, err)
		}
	}
}

// TestEveryCallOfANodeEndsWithItsContext while raft applies nothing.
func TestEveryCallOfANodeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	app := keyringtest.HangingApp{Hang: keyringtest.NewHang()}
	c := keyringtest.StartNodes(t, 1, func(cfg *node.Config) { cfg.App, cfg.Data = app, keyring.NoData{} })
	defer app.End()
	c.Ready(ctx)
	n := c.Nodes["s1"]
	later, err := n.Rotate(ctx, keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := n.Encrypt(ctx, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := n.JoinToken("s7", time.Hour)
	if err != nil || len(n.JoinTokens()) != 1 {
		t.Fatal(token, err)
	}
	app.On.Store(true)
	calls := map[string]func(context.Context) error{
		"Apply":   func(ctx context.Context) error { _, err := n.Apply(ctx, []byte("x")); return err },
		"Encrypt": func(ctx context.Context) error { _, err := n.Encrypt(ctx, nil, nil); return err },
		"EncryptTo": func(ctx context.Context) error {
			return n.EncryptTo(ctx, nil, nil, func(ctx context.Context, _ []byte) error { return ctx.Err() })
		},
		"Adopt":                func(ctx context.Context) error { return n.Adopt(ctx, keyringtest.NewKeyID()) },
		"ConfirmBackup":        func(ctx context.Context) error { return n.ConfirmBackup(ctx, [32]byte{}) },
		"Decrypt":              func(ctx context.Context) error { _, err := n.Decrypt(ctx, sealed, nil); return err },
		"Sign":                 func(ctx context.Context) error { _, err := n.Sign(ctx, map[string]any{"aud": "x"}); return err },
		"SignTyped":            func(ctx context.Context) error { _, err := n.SignTyped(ctx, "at+jwt"); return err },
		"Status":               func(ctx context.Context) error { _, err := n.Status(ctx); return err },
		"Rotate":               func(ctx context.Context) error { _, err := n.Rotate(ctx, keyring.RotateOptions{}); return err },
		"Remove":               func(ctx context.Context) error { return n.Remove(ctx, later.ID, keyring.RemoveOptions{}) },
		"AddServer":            func(ctx context.Context) error { return n.AddServer(ctx, "s8", "127.0.0.1:9") },
		"AddNonvoter":          func(ctx context.Context) error { return n.AddNonvoter(ctx, "s6", "127.0.0.1:9") },
		"PromoteServer":        func(ctx context.Context) error { return n.PromoteServer(ctx, "s8") },
		"DemoteServer":         func(ctx context.Context) error { return n.DemoteServer(ctx, "s1") },
		"RemoveServer":         func(ctx context.Context) error { return n.RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}) },
		"Leave":                func(ctx context.Context) error { return n.Leave(ctx) },
		"TransferLeadership":   func(ctx context.Context) error { return n.TransferLeadership(ctx) },
		"TransferLeadershipTo": func(ctx context.Context) error { return n.TransferLeadershipTo(ctx, "s9") },
		"WithdrawJoinToken": func(ctx context.Context) error {
			return n.WithdrawJoinToken(ctx, n.JoinTokens()[0].ID)
		},
	}
	wantCalls(t, "node", "Node", slices.Collect(maps.Keys(calls)))
	for _, name := range append([]string{"Apply"}, slices.Sorted(maps.Keys(calls))...) { // the first has raft hang
		began := time.Now()
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		err := calls[name](ctx)
		cancel()
		if took := time.Since(began); took > 5*time.Second { // the machine is busy
			t.Errorf("%s: with 300 ms it took %v: %v", name, took, err)
		}
	}
}

// TestEveryFunctionEndsWithItsContext while a KEK or a reader hangs.
func TestEveryFunctionEndsWithItsContext(t *testing.T) {
	t.Parallel()
	file, m, identity := keyringtest.SmallBackup(t)
	kek, reading := keyringtest.HangingKEK{KEK: kektest.File(t, bytes.Repeat([]byte{7}, 32)), Hang: keyringtest.NewHang()}, keyringtest.NewHang()
	reader := func() io.Reader { return keyringtest.HangingReader{Reader: bytes.NewReader(file), Hang: reading} } // for one call alone
	dir := t.TempDir()
	liveOnce(t, dir, kek)
	defer kek.End()
	defer reading.End()
	kek.On.Store(true)
	reading.On.Store(true)
	restore := func(r io.Reader, kek keyring.KEK) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := keyring.Restore(ctx, r, keyring.RestoreOptions{
				Dir: filepath.Join(t.TempDir(), "x"), KEKs: []keyring.KEK{kek}, Identities: []age.Identity{identity}, Digest: m.SHA256,
			})
			return err
		}
	}
	calls := map[string][]func(context.Context) error{
		"Open": {func(ctx context.Context) error { return openHung(t, ctx, kek) }},
		"node.Start": {func(ctx context.Context) error {
			_, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek}})
			return err
		}},
		"Inspect": {func(ctx context.Context) error {
			_, err := keyring.Inspect(ctx, filepath.Join(dir, "keystore"), kek)
			return err
		}},
		"Restore": {restore(reader(), keyring.InlineKEK()), restore(bytes.NewReader(file), kek)},
		"node.Restore": {func(ctx context.Context) error {
			cfg := node.Config{Dir: filepath.Join(t.TempDir(), "x"), KEKs: []keyring.KEK{keyring.InlineKEK()}}
			_, err := node.Restore(ctx, reader(), cfg, keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: m.SHA256})
			return err
		}},
		"node.Recover": {func(ctx context.Context) error {
			_, err := node.Recover(ctx, node.Config{Dir: copyOf(t, dir), KEKs: []keyring.KEK{kek}})
			return err
		}},
		"VerifyBackupContext": {func(ctx context.Context) error {
			_, err := keyring.VerifyBackupContext(ctx, reader(), keyring.VerifyOptions{Identities: []age.Identity{identity}})
			return err
		}},
		"RecoverKeys": {func(ctx context.Context) error {
			cfg := keyring.Config{Dir: copyOf(t, filepath.Join(dir, "keystore")), FSM: keyring.NewFSM(), KEKs: []keyring.KEK{kek}}
			_, err := keyring.RecoverKeys(ctx, cfg, func() error { return errors.New("the keystore is open") })
			return err
		}},
		"Actor":         {func(ctx context.Context) error { keyring.Actor(ctx); <-ctx.Done(); return ctx.Err() }},
		"WithActor":     {func(ctx context.Context) error { <-keyring.WithActor(ctx, "x").Done(); return ctx.Err() }},
		"WithForwarder": {func(ctx context.Context) error { <-keyring.WithForwarder(ctx, "x").Done(); return ctx.Err() }},
	}
	wantFunctions(t, calls)
	for name, each := range calls {
		for _, call := range each {
			wantDeadline(t, name, call)
		}
	}
}

// liveOnce starts a Node with a directory, and closes it when it is ready.
func liveOnce(t *testing.T, dir string, kek keyring.KEK) {
	t.Helper()
	n, err := node.Start(t.Context(), node.Config{Dir: dir, KEKs: []keyring.KEK{kek}})
	if err == nil {
		err = n.Keyring().WaitReady(t.Context())
	}
	if err := errors.Join(err, n.Close()); err != nil {
		t.Fatal(err)
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Error(err)
	}
	return copied
}

// wantDeadline makes a call of 300 ms, which fails by them.
func wantDeadline(t *testing.T, name string, call func(context.Context) error) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	err := call(ctx)
	cancel()
	if took := time.Since(began); took > 5*time.Second || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: with 300 ms it took %v: %v", name, took, err)
	}
}

// wantFunctions wants all functions of the root and of package node that take a context to be among the calls.
func wantFunctions(t *testing.T, calls map[string][]func(context.Context) error) {
	t.Helper()
	var ofKeyring, ofNode []string
	for name := range calls {
		if of, is := strings.CutPrefix(name, "node."); is {
			ofNode = append(ofNode, of)
		} else {
			ofKeyring = append(ofKeyring, name)
		}
	}
	wantCalls(t, ".", "", ofKeyring)
	wantCalls(t, "node", "", ofNode)
}

// openHung opens a keyring whose KEK hangs.
func openHung(t *testing.T, ctx context.Context, kek keyring.KEK) error {
	_, trans := raft.NewInmemTransport("s1")
	conf := raft.DefaultConfig()
	conf.LocalID, conf.LogOutput = "s1", io.Discard
	fsm, store := keyring.NewFSM(), raft.NewInmemStore()
	r, err := raft.NewRaft(conf, fsm, store, store, raft.NewInmemSnapshotStore(), trans)
	if err != nil {
		return err
	}
	defer r.Shutdown()
	_, err = keyring.Open(ctx, keyring.Config{Dir: t.TempDir(), ID: "s1", Raft: r, FSM: fsm, KEKs: []keyring.KEK{kek}})
	return err
}

// wantCalls requires that a table has every exported function of the package in a directory, or method of a type,
// whose first parameter is a context.
func wantCalls(t *testing.T, dir, of string, table []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Name.IsExported() && receiver(d) == of && takesContext(d) {
				want = append(want, d.Name.Name)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(table)
	if len(want) < 3 || !slices.Equal(want, table) {
		t.Errorf("%s, %q: calls %v take a context; the table has %v", dir, of, want, table)
	}
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	if star, ok := d.Recv.List[0].Type.(*ast.StarExpr); ok {
		return star.X.(*ast.Ident).Name
	}
	return "a value"
}

func takesContext(d *ast.FuncDecl) bool {
	if len(d.Type.Params.List) == 0 {
		return false
	}
	s, ok := d.Type.Params.List[0].Type.(*ast.SelectorExpr)
	return ok && s.Sel.Name == "Context"
}

// TestCloseGivesUpACallThatHangs after a while, has overwritten the keys then, and what it left behind
// writes nothing any more.
func TestCloseGivesUpACallThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		kek := keyringtest.HangingKEK{KEK: kektest.File(t, bytes.Repeat([]byte{7}, 32)), Hang: keyringtest.NewHang()}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.KEKs = -1, []keyring.KEK{kek}
		}})
		s := keyringtest.Ready(t, c)
		live := liveKeys(s.Keyring)
		kek.On.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Keyring.Rotate(ctx, keyring.RotateOptions{}); !errors.Is(err, keyring.ErrNotDurable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("rotate: %v", err)
		}
		began := time.Now()
		err := s.Keyring.Close()
		if took := time.Since(began); err == nil || took > 11*time.Second {
			t.Errorf("Close took %v: %v", took, err)
		}
		for _, b := range live {
			if bytes.ContainsFunc(b, func(r rune) bool { return r != 0 }) {
				t.Error("a key is not overwritten")
			}
		}
		kek.End()
		synctest.Wait()
		names := s.Disk.Names()
		time.Sleep(time.Hour) // virtual
		if len(names) != 2 || len(s.Disk.Names()) != 2 {
			t.Errorf("what was left behind has written: %v", s.Disk.Names())
		}
	})
}

// TestPanicOfTheHostReachesTheCaller in whose goroutine it would have been.
func TestPanicOfTheHostReachesTheCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		defer l.Stop(t)
		defer func() {
			if p := recover(); p != "the writer's" {
				t.Errorf("recovered %v", p)
			}
		}()
		l.Keyring.Backup(t.Context(), panickingWriter{}, kektest.Identity(t).Recipient())
	})
}

type panickingWriter struct{}

func (panickingWriter) Write([]byte) (int, error) { panic("the writer's") }
