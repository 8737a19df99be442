package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// TestEveryCallAfterCloseIsErrClosed asks every method that can return an error, also those
// that are yet to be written.
func TestEveryCallAfterCloseIsErrClosed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		sealed, err := k.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		v, asked := reflect.ValueOf(k), 0
		for i := range v.NumMethod() {
			m, name := v.Method(i), v.Type().Method(i).Name
			if n := m.Type().NumOut(); name == "Close" || n == 0 || m.Type().Out(n-1) != reflect.TypeFor[error]() {
				continue
			}
			var args []reflect.Value
			for j := range m.Type().NumIn() {
				switch in := m.Type().In(j); {
				case in == reflect.TypeFor[context.Context]():
					args = append(args, reflect.ValueOf(t.Context()))
				case in == reflect.TypeFor[[]byte]() && strings.Contains(name, "Decrypt") && j == m.Type().NumIn()-2:
					args = append(args, reflect.ValueOf(sealed))
				case m.Type().IsVariadic() && j == m.Type().NumIn()-1:
				default:
					args = append(args, reflect.Zero(in))
				}
			}
			out := m.Call(args)
			if err, _ := out[len(out)-1].Interface().(error); !errors.Is(err, keyring.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
			for _, o := range out[:len(out)-1] {
				if !o.IsZero() {
					t.Errorf("%s: an error and %v", name, o)
				}
			}
			asked++
		}
		if asked < 11 {
			t.Errorf("asked only %d methods", asked)
		}
		if len(k.Keys()) != 1 {
			t.Error("Keys, which is about metadata, has none")
		}
	})
}

// TestCloseEndsEveryCallThatWaits closes the keyring while a call is held up at each of the
// places where one can be.
func TestCloseEndsEveryCallThatWaits(t *testing.T) {
	t.Parallel()
	type cluster = keyringtest.Cluster
	hang := func(kind string) func(keyringtest.Event) keyringtest.Reply {
		return func(e keyringtest.Event) keyringtest.Reply {
			return keyringtest.Reply{Hang: e.Kind == kind}
		}
	}
	for name, c := range map[string]struct {
		arrange func(c *cluster, s *keyringtest.Server)
		call    func(ctx context.Context, c *cluster, k *keyring.Keyring) error
	}{
		"WaitReady without a leader": {
			func(c *cluster, s *keyringtest.Server) {
				c.Partition(s)
				time.Sleep(time.Minute)
				dropActive(s.Keyring)
			},
			func(ctx context.Context, _ *cluster, k *keyring.Keyring) error { return k.WaitReady(ctx) },
		},
		"Rotate that nobody confirms": {
			func(c *cluster, _ *keyringtest.Server) { c.OnEvent(hang("call")) },
			func(ctx context.Context, _ *cluster, k *keyring.Keyring) error {
				_, err := k.Rotate(ctx, keyring.RotateOptions{})
				return err
			},
		},
		"Rotate with Publish": {
			func(c *cluster, _ *keyringtest.Server) { c.OnEvent(hang("call")) },
			func(ctx context.Context, _ *cluster, k *keyring.Keyring) error {
				_, err := k.Rotate(ctx, keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
				return err
			},
		},
		"CheckMembers that nobody answers": {
			func(c *cluster, _ *keyringtest.Server) { c.OnEvent(hang("call")) },
			func(ctx context.Context, c *cluster, k *keyring.Keyring) error {
				return k.CheckMembers(ctx, []raft.ServerID{"s1", "s2", "s3"})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cl := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
				s := keyringtest.Ready(t, cl)
				c.arrange(cl, s)
				closeWhile(t, s, func() error { return c.call(t.Context(), cl, s.Keyring) })
			})
		})
	}
}

// closeWhile closes a server's keyring while a call waits, which ends then.
func closeWhile(t *testing.T, s *keyringtest.Server, call func() error) {
	t.Helper()
	errs := make(chan error, 1)
	go func() { errs <- call() }()
	synctest.Wait()
	select {
	case err := <-errs:
		t.Fatalf("it does not wait: %v", err)
	default:
	}
	began := time.Now()
	if err := s.Keyring.Close(); err != nil {
		t.Error(err)
	}
	if err := <-errs; !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("%v", err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("Close took %v", d)
	}
}

// TestCloseWaitsForAWriteUnderWay: a rotation is at its disk when Close comes.
func TestCloseWaitsForAWriteUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		arrived, proceed := make(chan struct{}), make(chan struct{})
		l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "rename" {
				close(arrived)
				<-proceed
			}
			return keyringtest.Fault{}
		})
		rotated, closed := make(chan error, 1), make(chan error, 1)
		go func() { rotated <- l.Rotate() }()
		<-arrived
		go func() { closed <- l.Keyring.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Errorf("Close did not wait: %v", err)
		default:
		}
		close(proceed)
		if err := <-rotated; !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("rotate: %v", err)
		}
		if err := <-closed; err != nil {
			t.Errorf("close: %v", err)
		}
		if n := l.Disk.OpenFiles(); n != 0 {
			t.Errorf("%d files are open", n)
		}
		l.Disk.OnOp(nil)
		l.Stop(t)
		l.Start()
		keyringtest.CheckOrphans(t, l.Host, "restarted")
	})
}

// TestCloseDuringAStormOfCalls: every call, many at a time, and Close in the middle, twice at
// once. A caller that comes too late gets ErrClosed, and nothing else goes wrong.
func TestCloseDuringAStormOfCalls(t *testing.T) {
	t.Parallel()
	for range 5 {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
			s := keyringtest.Ready(t, c)
			k := s.Keyring
			sealed, err := k.Encrypt([]byte("data"), nil)
			if err != nil {
				t.Fatal(err)
			}
			token, err := k.Sign(keyringtest.ClaimsForMe())
			if err != nil {
				t.Fatal(err)
			}
			calls := stormOf(t, k, sealed, token)
			var wg sync.WaitGroup
			var called atomic.Int64
			for name, call := range calls {
				for range 2 {
					wg.Go(func() {
						for {
							called.Add(1)
							if err := call(); errors.Is(err, keyring.ErrClosed) {
								return
							} else if err != nil {
								t.Errorf("%s: %v", name, err)
								return
							}
							_, _ = k.Keys(), k.JWKS()
							runtime.Gosched()
						}
					})
				}
			}
			for called.Load() < 1000 { // no time passes: nobody here ever waits for it
				runtime.Gosched()
			}
			for range 3 {
				wg.Go(func() {
					if err := k.Close(); err != nil {
						t.Errorf("close: %v", err)
					}
					if again, err := s.Disk.Open(); err == nil { // one of them gets it
						again.Close()
					} else if live := liveKeys(k); len(live) > 0 {
						t.Errorf("after Close %d secrets are in memory", len(live))
					}
				})
			}
			wg.Wait()
		})
	}
}

// stormOf are calls that need not fail.
func stormOf(t *testing.T, k *keyring.Keyring, sealed []byte, token string) map[string]func() error {
	ctx, room := t.Context(), make([]byte, 0, 100)
	return map[string]func() error{
		"Encrypt":       func() error { _, err := k.Encrypt([]byte("data"), nil); return err },
		"AppendEncrypt": func() error { _, err := k.AppendEncrypt(nil, []byte("data"), nil); return err },
		"Decrypt": func() error {
			got, err := k.Decrypt(sealed, nil)
			if err == nil && string(got) != "data" {
				t.Errorf("decrypted %q", got)
			}
			return err
		},
		"AppendDecrypt": func() error { _, err := k.AppendDecrypt(room, sealed, nil); return err },
		"Sign":          func() error { _, err := k.Sign(keyringtest.ClaimsForMe()); return err },
		"Verify":        func() error { return k.Verify(token, keyringtest.ForMe) },
		"WaitReady":     func() error { return k.WaitReady(ctx) },
		"Rotate":        func() error { _, err := k.Rotate(ctx, keyring.RotateOptions{}); return err },
		"Status":        func() error { _, err := k.Status(ctx); return err },
		"CheckMembers":  func() error { return k.CheckMembers(ctx, []raft.ServerID{"s1", "s2", "s3"}) },
		"ServePeer":     func() error { _, err := k.ServePeer(ctx, "s2", []byte("garbage")); return err },
	}
}

// TestI10CloseOverwritesTheKeys looks at the memory itself.
func TestI10CloseOverwritesTheKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := errors.Join(l.Seal(), l.Rotate(), l.Seal(), l.Rotate()); err != nil {
			t.Fatal(err)
		}
		l.Vault.CheckOpens(t, l.Keyring, "before")
		live := liveKeys(l.Keyring)
		if len(live) != 3*2 {
			t.Fatalf("%d secrets", len(live))
		}
		for _, b := range live {
			if bytes.Equal(b, make([]byte, len(b))) {
				t.Fatal("a secret is zero while it is in use")
			}
		}
		if err := l.Keyring.Close(); err != nil {
			t.Fatal(err)
		}
		for _, b := range live {
			if !bytes.Equal(b, make([]byte, len(b))) {
				t.Error("a secret is there after Close")
			}
		}
		if len(liveKeys(l.Keyring)) != 0 {
			t.Error("keys are there after Close")
		}
	})
}

// TestI10CloseLeavesNoGoroutine outside of synctest, where raft goes on.
func TestI10CloseLeavesNoGoroutine(t *testing.T) {
	h := idleHost(t)
	dir := t.TempDir()
	for range 3 {
		k, err := keyring.Open(t.Context(), h.InDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error)
		go func() { waiting <- k.WaitReady(t.Context()) }()
		for !strings.Contains(goroutines(), "(*Keyring).WaitReady") {
			runtime.Gosched()
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; !errors.Is(err, keyring.ErrClosed) {
			t.Errorf("WaitReady: %v", err)
		}
		all := goroutines()
		for tries := 0; isOurs(all) && tries < 1_000; tries++ { // the one that Close waited for returns just now
			runtime.Gosched()
			all = goroutines()
		}
		if isOurs(all) {
			t.Errorf("after Close:\n%s", all)
		}
	}
}

// isOurs reports whether one of those goroutines is the package's.
func isOurs(goroutines string) bool {
	return strings.Contains(goroutines, "keyring.(*Keyring)") || strings.Contains(goroutines, "keyring.(*keystore)")
}

func goroutines() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// TestSeveralKeyringsFollowOneAnotherOnOneFSM as its doc says.
func TestSeveralKeyringsFollowOneAnotherOnOneFSM(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		for range 3 {
			if err := errors.Join(l.Seal(), l.Rotate(), l.Keyring.Close()); err != nil {
				t.Fatal(err)
			}
			l.OpenKeyring(t)
			keyringtest.LeaderOf(t, l.Hosts)
			l.Vault.CheckOpens(t, l.Keyring, "the next one")
		}
	})
}

// TestCloseAfterRaftHasEnded: the host may close either first.
func TestCloseAfterRaftHasEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := l.Seal(); err != nil {
			t.Fatal(err)
		}
		if err := l.Raft.Shutdown().Error(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Keyring.Encrypt(nil, nil); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("encrypt: %v", err)
		}
		if err := l.Rotate(); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("rotate: %v", err)
		}
		l.Vault.CheckOpens(t, l.Keyring, "without raft")
		if _, err := l.Keyring.Status(t.Context()); err != nil {
			t.Errorf("status: %v", err)
		}
	})
}

// decimals are the ways in which fmt prints bytes as numbers.
func decimals(secret []byte) []string {
	return []string{
		strings.Trim(fmt.Sprintf("%v", secret), "[]"),
		strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", secret), "[]byte{"), "}"),
		strings.Trim(strings.ReplaceAll(fmt.Sprintf("%v", secret), " ", ","), "[]"),
		strings.Trim(fmt.Sprintf("%x", slices.Collect(func(yield func(int) bool) {
			for _, b := range secret {
				if !yield(int(b)) {
					return
				}
			}
		})), "[]"),
		strings.Trim(fmt.Sprintf("%o", secret), "[]"),
		strings.Trim(fmt.Sprintf("%b", secret), "[]"),
	}
}

// printed is all that can be got out of a value by printing it.
func printed(v any) string {
	var b strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%T", "%p", "%t", "%z"} {
		fmt.Fprintf(&b, verb+"\n", v)
	}
	if j, err := json.Marshal(v); err == nil {
		b.Write(j)
	}
	return b.String()
}

// TestNothingPrintsSecrets prints what a user can get hold of, and errors, in every way.
func TestNothingPrintsSecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 1)
		h := hosts[0]
		key := bytes.Repeat([]byte{0xc7, 0x3a}, 16)
		file := kektest.File(t, key)
		h.FSM = keyring.NewFSM()
		h.Run(t, h.FSM)
		cfg := h.Config()
		cfg.KEKs = []keyring.KEK{keyring.InlineKEK(), file}
		var err error
		if h.Keyring, err = keyring.Open(h.OnDisk(t), cfg); err != nil {
			t.Fatal(err)
		}
		keyringtest.LeaderOf(t, hosts)
		sealed, rotated := useOnce(t, h.Keyring)
		secrets := append(secretsOf(h.Keyring, func(name string) ([]byte, error) { return h.Disk.Bytes(name), nil }), key)
		id := h.Keyring.Keys()[1].ID
		h.Stop(t)
		data := h.Disk.Bytes(nks.FileName(id))
		damaged := bytes.Clone(data)
		damaged[len(damaged)/2] ^= 1
		h.Disk.Plant(nks.FileName(id), 0o600, damaged)
		h.Open(t, nil)
		cfg.KEKs = []keyring.KEK{file, keyring.InlineKEK()}
		keyringtest.LeaderOf(t, hosts)

		values := map[string]any{
			"Keyring": h.Keyring, "Config": cfg, "*Config": &cfg, "KEKs": cfg.KEKs, "FSM": h.FSM,
			"inline KEK": keyring.InlineKEK(), "file KEK": file, "Key": rotated, "Keys": h.Keyring.Keys(),
			"Status": h.Status(t), "a struct with all": struct {
				k *keyring.Keyring
				c keyring.Config
				f keyring.KEK
			}{h.Keyring, cfg, file},
		}
		if _, err := h.Keyring.Sign(keyringtest.ClaimsForMe()); err != nil {
			t.Fatal(err)
		}
		_, e1 := h.Keyring.Decrypt(sealed, nil)
		_, e2 := h.Keyring.Decrypt(nil, nil)
		_, e3 := file.Unwrap(t.Context(), data, nil)
		_, e4 := keyring.FileKEK(kektest.WriteFile(t, append(key, key...)))
		values["errors"] = []error{e1, e2, e3, e4}
		if e1 == nil || e2 == nil || e3 == nil || e4 == nil || len(h.Status(t).SetAside) != 1 {
			t.Fatalf("%v", values["errors"])
		}
		synctest.Wait()
		wantNoSecrets(t, values, secrets)
		if !strings.Contains(printed(struct{ S []byte }{secrets[0]}), decimals(secrets[0])[0]) || keyringtest.Leaks([]byte(printed(secrets[0])), secrets) == 0 {
			t.Error("the search finds nothing where it has to")
		}
		wantPrinted(t, h.Status(t), id.String())
		wantPrinted(t, file, file.ID())
	})
}

// wantPrinted wants to see what is no secret.
func wantPrinted(t *testing.T, v any, want string) {
	t.Helper()
	if !strings.Contains(printed(v), want) {
		t.Errorf("%T does not print %q", v, want)
	}
}

// useOnce has a keyring make ciphers and a signer, and a second key.
func useOnce(t *testing.T, k *keyring.Keyring) ([]byte, keyring.Key) {
	t.Helper()
	sealed, err := k.Encrypt([]byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rotated, err := k.Rotate(t.Context(), keyring.RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Decrypt(sealed, nil); err != nil { // so that a cipher is there
		t.Fatal(err)
	}
	if _, err := k.Sign(keyringtest.ClaimsForMe()); err != nil { // so that a signer is there
		t.Fatal(err)
	}
	return sealed, rotated
}

// wantNoSecrets prints values, and looks for secrets in bytes, letters and numbers.
func wantNoSecrets(t *testing.T, values map[string]any, secrets [][]byte) {
	t.Helper()
	for name, v := range values {
		text := printed(v)
		if n := keyringtest.Leaks([]byte(text), secrets); n > 0 {
			t.Errorf("%s prints %d secrets", name, n)
		}
		for _, s := range secrets {
			for _, d := range decimals(s[len(s)/2-8 : len(s)/2+8]) {
				if strings.Contains(text, d) {
					t.Errorf("%s prints a secret in numbers", name)
				}
			}
		}
	}
}

// TestCloseWaitsForWhatReplicationHasBegun: another server, or the disk, answers late, and pays no heed to the
// context.
func TestCloseWaitsForWhatReplicationHasBegun(t *testing.T) {
	t.Parallel()
	for what, is := range map[string]func(e keyringtest.Event, s raft.ServerID) bool{
		"a fetch": keyringtest.IsFetch,
		"a scan": func(e keyringtest.Event, s raft.ServerID) bool {
			return e.Server.ID == s && e.Kind == "disk" && strings.HasPrefix(e.What, "list")
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
				keyringtest.Ready(t, c)
				s := keyringtest.Follower(c)
				began, proceed := make(chan struct{}), make(chan struct{})
				var once sync.Once
				c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
					if is(e, s.ID) {
						once.Do(func() { close(began) })
						<-proceed
					}
					if keyringtest.IsFetch(e, s.ID) { // else it would not scan
						return keyringtest.Reply{Err: syscall.EIO}
					}
					return keyringtest.Reply{}
				})
				if err := lose(s.Keyring, s.Keyring.Keys()[0].ID); err != nil {
					t.Fatal(err)
				}
				<-began
				closed := make(chan error, 1)
				go func() { closed <- s.Keyring.Close() }()
				synctest.Wait()
				waits := len(closed) == 0
				close(proceed)
				if err := <-closed; err != nil || !waits {
					t.Errorf("close: %v; it waited: %t", err, waits)
				}
			})
		})
	}
}

// TestKEKsPrintTheirIDs, and no passphrase, identity or cipher.
func TestKEKsPrintTheirIDs(t *testing.T) {
	identity := kektest.Identity(t)
	secrets := [][]byte{[]byte("correct horse battery"), []byte(identity.String())}
	passphrase := kektest.Passphrase(t, string(secrets[0]))
	if _, err := passphrase.Wrap(t.Context(), nil, nil); err != nil { // so that it has a cipher
		t.Fatal(err)
	}
	for name, kek := range map[string]keyring.KEK{"passphrase": passphrase, "age": kektest.Age(t, identity, identity)} {
		for _, v := range []any{kek, &kek, []keyring.KEK{kek}, struct{ k keyring.KEK }{kek}} {
			text := printed(v)
			if n := keyringtest.Leaks([]byte(text), secrets); n > 0 || strings.Contains(text, decimals(secrets[0][:8])[0]) {
				t.Errorf("%s prints %d secrets: %s", name, n, text)
			}
		}
		if !strings.Contains(printed(kek), "KEK "+kek.ID()) {
			t.Errorf("%s prints %s", name, printed(kek))
		}
	}
}
