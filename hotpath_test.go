package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
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

func TestDecryptOfAnythingElseIsATypedErrorAndNoPlaintext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		plaintext, aad := []byte("the plaintext"), []byte("the aad")
		sealed, err := k.Encrypt(plaintext, aad)
		if err != nil {
			t.Fatal(err)
		}
		refuse := func(what string, ciphertext, aad []byte, want error) {
			t.Helper()
			if got, err := k.Decrypt(ciphertext, aad); !errors.Is(err, want) || got != nil {
				t.Fatalf("%s: %q, %v, want %v", what, got, err, want)
			}
			dst := make([]byte, 3, 300)
			if got, err := k.AppendDecrypt(dst, ciphertext, aad); !errors.Is(err, want) || got != nil {
				t.Fatalf("%s, appended: %q, %v, want %v", what, got, err, want)
			}
			if bytes.Contains(dst[:cap(dst)], plaintext[:4]) {
				t.Fatalf("%s: dst has plaintext", what)
			}
		}
		for i := range sealed {
			refuse(fmt.Sprintf("cut to %d bytes", i), sealed[:i], aad, keyring.ErrDecrypt)
			rest, want := sealed[i+1:], keyring.ErrDecrypt
			if len(rest) >= keyring.Overhead && rest[0] == 1 { // by chance the version: it names another key
				want = keyring.ErrUnknownKey
			}
			refuse(fmt.Sprintf("without %d bytes", i+1), rest, aad, want)
			for bit := range 8 {
				flipped := bytes.Clone(sealed)
				flipped[i] ^= 1 << bit
				want := keyring.ErrDecrypt
				if 1 <= i && i < 17 { // it names another key
					want = keyring.ErrUnknownKey
				}
				refuse(fmt.Sprintf("bit %d of byte %d", bit, i), flipped, aad, want)
			}
		}
		for i := range aad {
			refuse("the AAD cut short", sealed, aad[:i], keyring.ErrDecrypt)
			flipped := bytes.Clone(aad)
			flipped[i] ^= 1
			refuse("the AAD with a bit flipped", sealed, flipped, keyring.ErrDecrypt)
		}
		refuse("no AAD", sealed, nil, keyring.ErrDecrypt)
		refuse("a longer AAD", sealed, append(bytes.Clone(aad), 0), keyring.ErrDecrypt)
		refuse("a longer ciphertext", append(bytes.Clone(sealed), 0), aad, keyring.ErrDecrypt)
		refuse("twice", append(bytes.Clone(sealed), sealed...), aad, keyring.ErrDecrypt)
		refuse("nil", nil, aad, keyring.ErrDecrypt)
		refuse("nothing", []byte{}, nil, keyring.ErrDecrypt)
		refuse("zeros", make([]byte, 200), nil, keyring.ErrDecrypt)
		refuse("zeros of the right version", append([]byte{1}, make([]byte, 200)...), nil, keyring.ErrUnknownKey)
		if got, err := k.Decrypt(sealed, aad); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("the ciphertext itself: %q, %v", got, err)
		}
	})
}

// TestErrDecryptSaysNothingMore: whatever is wrong with the bytes, it is one and the same.
func TestErrDecryptSaysNothingMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		sealed, err := k.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		tag, body := bytes.Clone(sealed), bytes.Clone(sealed)
		tag[len(tag)-1] ^= 1
		body[45] ^= 1
		for _, b := range [][]byte{nil, sealed[:10], tag, body, sealed[:len(sealed)-1]} {
			if _, err := k.Decrypt(b, nil); err != keyring.ErrDecrypt {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestEmptyAndNilRoundTrip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		for _, plaintext := range [][]byte{nil, {}, {0}, bytes.Repeat([]byte("x"), 1<<20)} {
			for _, aad := range [][]byte{nil, {}, []byte("aad"), make([]byte, 1<<16)} {
				sealed, err := k.Encrypt(plaintext, aad)
				if err != nil || len(sealed) != len(plaintext)+keyring.Overhead {
					t.Fatalf("%d bytes, %d of AAD: %d bytes, %v", len(plaintext), len(aad), len(sealed), err)
				}
				got, err := k.Decrypt(sealed, aad)
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("%d bytes, %d of AAD: %d bytes, %v", len(plaintext), len(aad), len(got), err)
				}
				if len(aad) == 0 { // nil and empty are the same
					if _, err := k.Decrypt(sealed, []byte{}); err != nil {
						t.Error(err)
					}
					if _, err := k.Decrypt(sealed, nil); err != nil {
						t.Error(err)
					}
				}
			}
		}
	})
}

// TestPlaintextBeyondTheLimitOfGCMIsAnError: the memory is reserved only, and reading it would
// be a fault.
func TestPlaintextBeyondTheLimitOfGCMIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		length := uint64(1<<36 - 32 + 1)
		huge, err := syscall.Mmap(-1, 0, int(length), syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Munmap(huge)
		if got, err := k.Encrypt(huge, nil); !errors.Is(err, keyring.ErrTooLong) || got != nil {
			t.Errorf("Encrypt: %d bytes, %v", len(got), err)
		}
		if got, err := k.AppendEncrypt(nil, huge, nil); !errors.Is(err, keyring.ErrTooLong) || got != nil {
			t.Errorf("AppendEncrypt: %d bytes, %v", len(got), err)
		}
	})
}

func TestDstThatOverlapsIsAnError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		buf := make([]byte, 400)
		copy(buf, "plaintext")
		sealed, err := k.Encrypt([]byte("plaintext"), buf[200:210])
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(buf)
		for what, call := range map[string]func() ([]byte, error){
			"plaintext in place": func() ([]byte, error) { return k.AppendEncrypt(buf[:0], buf[:9], nil) },
			"plaintext behind":   func() ([]byte, error) { return k.AppendEncrypt(buf[:0], buf[20:29], nil) },
			"the AAD":            func() ([]byte, error) { return k.AppendEncrypt(buf[:0], []byte("other"), buf[10:12]) },
		} {
			if got, err := call(); !errors.Is(err, keyring.ErrOverlap) || got != nil || !bytes.Equal(buf, before) {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
		copy(buf, sealed)
		before = bytes.Clone(buf)
		for what, call := range map[string]func() ([]byte, error){
			"ciphertext in place": func() ([]byte, error) { return k.AppendDecrypt(buf[:0], buf[:len(sealed)], buf[200:210]) },
			"the AAD":             func() ([]byte, error) { return k.AppendDecrypt(buf[195:195], sealed, buf[200:210]) },
		} {
			if got, err := call(); !errors.Is(err, keyring.ErrOverlap) || got != nil || !bytes.Equal(buf, before) {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
		if _, err := k.AppendDecrypt(buf[300:300], buf[:len(sealed)], buf[200:210]); err != nil {
			t.Errorf("apart in one array: %v", err)
		}
	})
}

func TestAppendKeepsWhatDstHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		for _, room := range []int{0, 1000} {
			dst := append(make([]byte, 0, room+6), "before"...)
			sealed, err := k.AppendEncrypt(dst, []byte("data"), nil)
			if err != nil || string(sealed[:6]) != "before" {
				t.Fatalf("%q, %v", sealed, err)
			}
			got, err := k.AppendDecrypt(dst[:6:6], sealed[6:], nil)
			if err != nil || string(got) != "beforedata" {
				t.Errorf("%q, %v", got, err)
			}
		}
	})
}

func TestHotPathsAllocateNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		plaintext, aad := make([]byte, 1024), []byte("aad")
		sealed, err := k.Encrypt(plaintext, aad)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		dst := make([]byte, 0, len(sealed))
		for name, call := range map[string]func() error{
			"AppendEncrypt": func() error { _, err := k.AppendEncrypt(dst, plaintext, aad); return err },
			"AppendDecrypt": func() error { _, err := k.AppendDecrypt(dst, sealed, aad); return err },
		} {
			if n := testing.AllocsPerRun(1000, func() { err = errors.Join(err, call()) }); n != 0 || err != nil {
				t.Errorf("%s: %v allocations, %v", name, n, err)
			}
		}
	})
}

func TestFollowerNamesTheLeaderAndOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c.Servers {
			if s == leader {
				continue
			}
			_, err := s.Keyring.Encrypt([]byte("data"), nil)
			var not keyring.NotLeaderError
			if !errors.Is(err, keyring.ErrNotLeader) || !errors.As(err, &not) || not.Leader != leader.ID {
				t.Errorf("%s: encrypt: %v", s.ID, err)
			}
			if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); !errors.Is(err, keyring.ErrNotLeader) {
				t.Errorf("%s: rotate: %v", s.ID, err)
			}
			if got, err := s.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
				t.Errorf("%s: %q, %v", s.ID, got, err)
			}
		}
		c.Partition(leader)
		time.Sleep(time.Minute)
		var not keyring.NotLeaderError
		if _, err := leader.Keyring.Encrypt(nil, nil); !errors.As(err, &not) || not.Leader != "" {
			t.Errorf("the leader that was, cut off: %v", err)
		}
		if _, err := leader.Keyring.Decrypt(sealed, nil); err != nil {
			t.Errorf("it opens no longer: %v", err)
		}
	})
}

func TestNoFirstKeyIsNotReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 2)
		for _, h := range hosts {
			h.FSM = keyring.NewFSM()
			h.Run(t, h.FSM)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		cfg := leader.Config()
		cfg.KEKs = []keyring.KEK{kektest.New("kek")}
		kektest.Outages["fails"](cfg.KEKs[0].(*kektest.KMS)) // so that no key can be made
		var err error
		if leader.Keyring, err = keyring.Open(leader.OnDisk(t), cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := leader.Keyring.Encrypt(nil, nil); !errors.Is(err, keyring.ErrNotReady) || errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("encrypt: %v", err)
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("rotate: %v", err)
		}
	})
}

// gate is a host's FSM that stands still at the entry "stop" until it is opened.
type gate struct {
	open chan struct{}
}

func (g *gate) Apply(l *raft.Log) any {
	if string(l.Data) == "stop" {
		<-g.open
	}
	return nil
}
func (g *gate) Snapshot() (raft.FSMSnapshot, error) { return nil, keyringtest.ErrDiskFull }
func (g *gate) Restore(io.ReadCloser) error         { return keyringtest.ErrDiskFull }

// TestI4NewLeaderSealsAndSignsNothingBeforeItsBarrier: a server becomes the leader that has not yet
// applied a rotation. Its ring still has the old key for the active one.
func TestI4NewLeaderSealsAndSignsNothingBeforeItsBarrier(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 3)
		gates := map[*keyringtest.Host]*gate{}
		for _, h := range hosts {
			gates[h] = &gate{open: make(chan struct{})}
			h.Open(t, gates[h])
		}
		old := keyringtest.LeaderOf(t, hosts)
		late := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != old })]
		for _, h := range hosts {
			if h != late {
				close(gates[h].open)
			}
			if err := h.Keyring.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		stale := late.Keyring.Keys()[0].ID
		if err := old.Raft.Apply([]byte("stop"), 0).Error(); err != nil {
			t.Fatal(err)
		}
		key, err := old.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Raft.LeadershipTransferToServer(late.ID, raft.ServerAddress(late.ID)).Error(); err != nil {
			t.Fatal(err)
		}
		for late.Raft.State() != raft.Leader {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if got := keyring.Ring(late.FSM).Active(); got == nil || keyring.KeyID(got.ID) != stale {
			t.Fatalf("the new leader is not behind: %v", got)
		}
		if sealed, err := late.Keyring.Encrypt([]byte("data"), nil); !errors.Is(err, keyring.ErrNotReady) {
			id, _ := keyring.CiphertextKeyID(sealed)
			t.Errorf("before the barrier: sealed under %s, %v", id, err)
		}
		if token, err := late.Keyring.Sign(keyringtest.ClaimsForMe()); !errors.Is(err, keyring.ErrNotReady) || token != "" {
			t.Errorf("before the barrier: signed %q, %v", token, err)
		}
		close(gates[late].open)
		if err := late.Keyring.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		sealed, err := late.Keyring.Encrypt([]byte("data"), nil)
		if id, _ := keyring.CiphertextKeyID(sealed); err != nil || id != key.ID {
			t.Errorf("after the barrier: sealed under %s, %v", id, err)
		}
		token, err := late.Keyring.Sign(keyringtest.ClaimsForMe())
		if err != nil || keyringtest.KeyIDOf(t, token) != key.ID {
			t.Errorf("after the barrier: signed %q, %v", token, err)
		}
	})
}

func TestMissingMaterialIsNamedAsSuch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
			t.Fatal(err)
		}
		keys := l.Keyring.Keys()
		l.Stop(t)
		for _, k := range keys {
			l.Disk.Plant(nks.FileName(k.ID), 0o600, nil)
		}
		l.Open(t, nil)
		time.Sleep(time.Minute)
		for _, k := range keys {
			if got, err := l.Keyring.Decrypt(l.Vault[k.ID][0], []byte("aad")); !errors.Is(err, keyring.ErrKeyMissing) || got != nil {
				t.Errorf("decrypt under %s: %q, %v", k.ID, got, err)
			}
		}
		if _, err := l.Keyring.Encrypt(nil, nil); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("encrypt: %v", err)
		}
		if _, err := l.Keyring.Decrypt(keyringtest.Naming(l.Vault[keys[0].ID][0], keyring.KeyID{5}), nil); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("decrypt under an unknown key: %v", err)
		}
	})
}

// TestDecryptOfAKeyThatWasReadAgainIsNeverSilent: a key that was overwritten and has come back
// gives the plaintext or an error, never neither.
func TestDecryptOfAKeyThatWasReadAgainIsNeverSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		k := keyringtest.Ready(t, c).Keyring
		sealed, err := k.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Decrypt(sealed, nil); err != nil {
			t.Fatal(err)
		}
		if err := reread(k, k.Keys()[0].ID); err != nil {
			t.Fatal(err)
		}
		if got, err := k.Decrypt(sealed, nil); err == nil && string(got) != "data" || err != nil && !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("decrypt: %q, %v", got, err)
		}
		if _, err := k.Encrypt(nil, nil); errors.Is(err, keyring.ErrClosed) {
			t.Errorf("encrypt: %v, and nobody has closed it", err)
		}
		if _, err := k.Rotate(t.Context(), keyring.RotateOptions{}); err != nil { // which changes the ring
			t.Fatal(err)
		}
		synctest.Wait()
		if got, err := k.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("afterwards: %q, %v", got, err)
		}
	})
}

// TestHotPathsGoOnThroughRotations: readers and writers on all servers while keys change.
func TestHotPathsGoOnThroughRotations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, s := range c.Servers {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
					if err != nil {
						t.Errorf("encrypt: %v", err)
						return
					}
					got, err := s.Keyring.Decrypt(sealed, nil)
					behind := errors.Is(err, keyring.ErrKeyMissing) || errors.Is(err, keyring.ErrUnknownKey)
					if err == nil && string(got) != "data" || err != nil && (!behind || s == leader) {
						t.Errorf("%s: %q, %v", s.ID, got, err)
						return
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		for range 10 {
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		wg.Wait()
	})
}
