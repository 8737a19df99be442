package kek_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"filippo.io/age"
)

func TestAgeKEKRefuses(t *testing.T) {
	scrypt, err := age.NewScryptRecipient("passphrase")
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string][]age.Recipient{
		"no recipients": {}, "a passphrase": {scrypt}, "a recipient without a name": {nameless{}},
	} {
		if k, err := kek.Age(to); err == nil {
			t.Errorf("%s: %v", name, k)
		}
	}
	for name, to := range map[string][]age.Recipient{
		"a classic and a post-quantum one": {kektest.Identity(t).Recipient(), hybrid(t)}, "a plugin that is not installed": {absentPlugin{}},
	} {
		if k, err := kek.Age(to); !errors.Is(err, kek.ErrRefused) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if _, err := kektest.Age(t, kektest.Identity(t)).Unwrap(t.Context(), nil, nil); !errors.Is(err, kek.ErrWrapOnly) {
		t.Errorf("escrow unwraps: %v", err)
	}
}

func hybrid(t *testing.T) age.Recipient {
	t.Helper()
	identity, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return identity.Recipient()
}

// absentPlugin is a recipient of a plugin whose program is not installed.
type absentPlugin struct{}

func (absentPlugin) String() string { return "age1nothere1" }

func (absentPlugin) Wrap([]byte) ([]*age.Stanza, error) {
	_, err := exec.LookPath("age-plugin-nothere")
	return nil, err
}

// TestAgeKEKWaitsForNoPluginThatHangs: neither the constructor nor a call.
func TestAgeKEKWaitsForNoPluginThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		plugin := &hanging{Recipient: kektest.Identity(t).Recipient(), until: make(chan struct{})}
		defer close(plugin.until)
		k, err := kek.Age([]age.Recipient{plugin})
		if err != nil {
			t.Fatal(err)
		}
		plugin.hangs.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Wrap(ctx, []byte("key"), nil); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), k.ID()) { // its keystore names it
			t.Errorf("a call: %v", err)
		}
		began := time.Now()
		if _, err := kek.Age([]age.Recipient{plugin}); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Second {
			t.Errorf("the constructor after %v: %v", time.Since(began), err)
		}
	})
}

// hanging is a recipient of a plugin that can be made to hang.
type hanging struct {
	age.Recipient
	hangs atomic.Bool
	until chan struct{}
}

func (*hanging) String() string { return "age1hangs1" }

func (h *hanging) Wrap(key []byte) ([]*age.Stanza, error) {
	if h.hangs.Load() {
		<-h.until
	}
	return h.Recipient.Wrap(key)
}

type nameless struct{ age.Recipient }

func TestAgeKEKIDIsOfTheRecipientsInAnyOrder(t *testing.T) {
	a, b := kektest.Identity(t), kektest.Identity(t)
	id := func(with []age.Identity, to ...age.Recipient) string {
		k, err := kek.Age(to, with...)
		if err != nil {
			t.Fatal(err)
		}
		return k.ID()
	}
	both := id(nil, a.Recipient(), b.Recipient())
	if both != id([]age.Identity{b}, b.Recipient(), a.Recipient()) || both == id(nil, a.Recipient()) {
		t.Errorf("%s is not the ID of both", both)
	}
}

// TestAgeKEKLeavesNoMaterialWhereItHasRead: what a buffer leaves behind that has grown, nobody overwrites.
func TestAgeKEKLeavesNoMaterialWhereItHasRead(t *testing.T) {
	aad, secret := []byte("aad"), bytes.Repeat([]byte("secret"), 500)
	for name, c := range map[string]struct {
		content []byte
		end     error
		opens   bool
	}{
		"right":      {kek.Bound(secret, aad), io.EOF, true},
		"of another": {kek.Bound(secret, []byte("another")), io.EOF, false},
		"cut short":  {kek.Bound(secret, aad), io.ErrUnexpectedEOF, false},
	} {
		r := &recorder{Reader: bytes.NewReader(c.content), end: c.end}
		got, err := kek.ReadBound(r, len(c.content)+100, aad)
		if c.opens != bytes.Equal(got, secret) || c.opens != (err == nil) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		for _, b := range r.into {
			if len(bytes.Trim(b, "\x00")) > 0 {
				t.Errorf("%s: %d bytes stay in memory", name, len(b))
			}
		}
	}
}

// recorder remembers what it was read into. It gives a little at a time, and ends with an error.
type recorder struct {
	io.Reader
	end  error
	into [][]byte
}

func (r *recorder) Read(p []byte) (int, error) {
	r.into = append(r.into, p)
	n, err := r.Reader.Read(p[:min(len(p), 300)])
	if err == io.EOF {
		err = r.end
	}
	return n, err
}

// flaky is a recipient that can be made to fail.
type flaky struct {
	age.Recipient
	err error
}

func (f *flaky) String() string { return "flaky" }

func (f *flaky) Wrap(key []byte) ([]*age.Stanza, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Recipient.Wrap(key)
}
