package port_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"example.com/keyring/port"
	"github.com/hashicorp/raft"
)

// closing is a KEK that closes a port when it is first asked for.
type closing struct {
	keyring.KEK
	once  *sync.Once
	close func()
}

func (c closing) ID() string {
	c.once.Do(c.close)
	return c.KEK.ID()
}

// TestCloseMayComeBeforeOpenReturns, or before it is called: then there is no keyring, and nothing runs on.
func TestCloseMayComeBeforeOpenReturns(t *testing.T) {
	for _, name := range []string{"before", "meanwhile"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hs := newHosts(t, 1)
				h := hs.all["h1"]
				hs.listen(h)
				hs.raftAlone(h, true)
				closed := false
				closes := func() {
					closed = true
					if err := h.port.Close(); err != nil {
						t.Error(err)
					}
				}
				cfg := h.keyring()
				if name == "before" {
					closes()
				} else {
					cfg.KEKs[0] = closing{cfg.KEKs[0], new(sync.Once), closes}
				}
				keys, err := h.port.Open(t.Context(), cfg)
				if !closed || keys != nil || !errors.Is(err, net.ErrClosed) {
					t.Errorf("closed %v: %v, %v", closed, keys, err)
				}
			})
		})
	}
}

// TestCloseEndsJoin, which waits for servers that do not answer.
func TestCloseEndsJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 2)
		h := hs.all["h1"]
		hs.listen(h)
		joined := make(chan error, 1)
		go func() { joined <- h.port.Join(t.Context(), []string{"h2@" + hs.all["h2"].addr}, "") }()
		synctest.Wait()
		if err := h.port.Close(); err != nil {
			t.Error(err)
		}
		if err := <-joined; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Join: %v", err)
		}
	})
}

// TestCloseLeavesNoListenerToAHandlerThatHangs: it says that one has not ended, and the address is free all the same.
func TestCloseLeavesNoListenerToAHandlerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 1)
		h := hs.all["h1"]
		var err error
		if h.port, err = port.Listen(hs.config(h)); err != nil {
			t.Fatal(err)
		}
		called, release := make(chan struct{}), make(chan struct{})
		h.port.Handle("/hangs", func(context.Context, raft.ServerID, []byte) ([]byte, error) {
			close(called)
			<-release
			return nil, nil
		})
		hs.run(h, true)
		client := peer.NewClient(hs.dialer(h.tls))
		defer client.Close()
		go client.Call(t.Context(), "h1", h.addr, "/host/hangs", nil)
		<-called
		if err := errors.Join(h.keys.Close(), h.raft.Shutdown().Error()); err != nil {
			t.Error(err)
		}
		if err := h.port.Close(); err == nil || !strings.Contains(err.Error(), "has not ended") {
			t.Errorf("Close: %v", err)
		}
		hs.pipes.Listen(t, h.addr).Close() // which fails if the listener was left open
		close(release)
	})
}
