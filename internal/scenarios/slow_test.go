package scenarios_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// slowLink is a Transport over a link of so many bytes a second, which all calls share.
type slowLink struct {
	keyring.Transport
	rate    int
	busy    chan struct{} // has one while bytes are on the link
	carried *atomic.Int64 // bytes
}

func (l slowLink) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	b, err := l.Transport.Call(ctx, to, request)
	select {
	case l.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-l.busy }()
	select {
	case <-time.After(time.Duration(len(request)+len(b)) * time.Second / time.Duration(l.rate)):
		l.carried.Add(int64(len(request) + len(b)))
		return b, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TestI9KeysArriveOverASlowLink: 64 RSA keys are some 150 KB. A server gets them all over 50 KB a second, and over 1 KB. Each
// is written when it has come, and none is asked for twice.
func TestI9KeysArriveOverASlowLink(t *testing.T) {
	for _, rate := range []int{50 << 10, 1 << 10} {
		synctest.Test(t, func(t *testing.T) {
			var carried atomic.Int64
			disk := keyringtest.NewDisk()
			plantRSA(t, disk, 64)
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Disk: func(id raft.ServerID) *keyringtest.Disk {
				if id == "s1" {
					return disk
				}
				return keyringtest.NewDisk()
			}, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
				cfg.Rotation.Every = -1
				if s.ID == "s4" {
					cfg.Transport = slowLink{cfg.Transport, rate, make(chan struct{}, 1), &carried}
				}
			}})
			keyringtest.Ready(t, c)
			time.Sleep(time.Minute) // virtual, as all times here
			fresh := c.Add("s4")
			time.Sleep(3 * time.Minute)
			if st, err := fresh.Keyring.Status(t.Context()); err != nil || len(st.Missing) > 48 {
				t.Errorf("%d bytes a second: three minutes later %d keys are missing, %v", rate, len(st.Missing), err)
			}
			time.Sleep(7 * time.Minute)
			if n := carried.Load(); n > 500_000 {
				t.Errorf("%d bytes a second: %d bytes", rate, n)
			}
			st, err := fresh.Keyring.Status(t.Context())
			if err != nil || len(st.Missing) > 0 || len(st.Keys) < 64 {
				t.Errorf("%d bytes a second: ten minutes later %d of %d keys are missing; %v, %v", rate, len(st.Missing), len(st.Keys), st.Problems, err)
			}
		})
	}
}

// plantRSA plants so many keys that have one RSA signing key, which takes long to make.
func plantRSA(t *testing.T, d *keyringtest.Disk, n int) {
	t.Helper()
	made, err := nks.Generate("RS256")
	if err != nil {
		t.Fatal(err)
	}
	material := made.Encode()
	for i := range n {
		id := keyring.KeyID{7, byte(i >> 8), byte(i)}
		copy(material[5:], id[:])
		m, err := nks.Decode(material)
		if err != nil {
			t.Fatal(err)
		}
		f := nks.File{ID: id, Algorithm: "RS256", Check: m.Check(id, "RS256"), Created: time.Now().UTC()}
		kek := keyring.InlineKEK()
		wrapped, err := kek.Wrap(t.Context(), m.Encode(), f.AAD())
		if err != nil {
			t.Fatal(err)
		}
		f.Wrapped = []nks.Wrapped{{KEK: kek.ID(), Ciphertext: wrapped}}
		b, err := f.Encode()
		if err != nil {
			t.Fatal(err)
		}
		d.Plant(nks.FileName(id), 0o600, b)
	}
}
