package keyringgrpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const method = "/" + keyringgrpc.ServiceName + "/Call"

func TestCall(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	for range 3 {
		got, err := p2.Call(t.Context(), "s1", []byte("hello"))
		if err != nil || string(got) != "s2: hello" {
			t.Fatalf("%q, %v", got, err)
		}
		if got, err := p1.Call(t.Context(), "s2", nil); err != nil || string(got) != "s1: " {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if open, _ := p1.Connections(); open != 2 {
		t.Errorf("%d connections, want one each way", open)
	}
	if _, err := p2.Call(t.Context(), "s9", nil); err == nil || !strings.Contains(err.Error(), `server "s9" is not in the raft configuration`) {
		t.Errorf("call of nobody: %v", err)
	}
}

// TestCallGoesThroughNoProxy, whatever the environment says.
func TestCallGoesThroughNoProxy(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("GRPC_PROXY", "http://127.0.0.1:1")
	c := newCluster(t)
	c.port("s1")
	if _, err := c.port("s2").Call(t.Context(), "s1", nil); err != nil {
		t.Error(err)
	}
}

// TestMessagesAreBounded at 1 MiB each way, on the end that sends and on the one that receives.
func TestMessagesAreBounded(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	long := make([]byte, keyringgrpc.MaxMessage)
	p1.keys.answer = func(_ context.Context, _ raft.ServerID, request []byte) ([]byte, error) { return request, nil }
	got, err := p2.Call(t.Context(), "s1", long)
	if err != nil || !bytes.Equal(got, long) {
		t.Errorf("1 MiB each way: %d bytes, %v", len(got), err)
	}
	longer := append(long, 0)
	c.set("s3", "nowhere:1")
	if _, err := p2.Call(t.Context(), "s3", longer); err == nil || !strings.Contains(err.Error(), "request of 1048577 bytes") {
		t.Errorf("a long request: %v", err)
	}
	err = p2.Conn("s1").Invoke(t.Context(), method, wrapperspb.Bytes(longer), new(wrapperspb.BytesValue))
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "request of 1048577 bytes") {
		t.Errorf("a long request that is sent all the same: %v", err)
	}
	p1.keys.answer = func(context.Context, raft.ServerID, []byte) ([]byte, error) { return make([]byte, 2*len(long)), nil }
	if got, err := p2.Call(t.Context(), "s1", nil); status.Code(err) != codes.ResourceExhausted || got != nil {
		t.Errorf("a long answer: %d bytes, %v", len(got), err)
	}
}

// TestAnswersBeforeAndAfterTheKeyring: there are none.
func TestAnswersBeforeAndAfterTheKeyring(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	var asked atomic.Int32
	p1.keys.answer = func(context.Context, raft.ServerID, []byte) ([]byte, error) {
		asked.Add(1)
		return nil, keyring.ErrClosed
	}
	if _, err := p2.Call(t.Context(), "s1", nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the keyring is closed") {
		t.Errorf("closed: %v", err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("it is asked %d times: no retry is to hide a refusal", n)
	}
	p1.keys.answer = func(context.Context, raft.ServerID, []byte) ([]byte, error) { return nil, errors.New("of the inside") }
	if _, err := p2.Call(t.Context(), "s1", nil); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "inside") {
		t.Errorf("another error: %v", err)
	}
	p1.told.wait("of the inside")
	p1.Unstart()
	if _, err := p2.Call(t.Context(), "s1", nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not open yet") {
		t.Errorf("before Open: %v", err)
	}
	p1.Unattach()
	if _, err := p1.Call(t.Context(), "s2", nil); err == nil || !strings.Contains(err.Error(), "raft does not run here yet") {
		t.Errorf("a call before there is a raft: %v", err)
	}
	p2.Close()
	if _, err := p2.Call(t.Context(), "s1", nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestCallEndsWithItsContext, though the other end says nothing.
func TestCallEndsWithItsContext(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	asked, ended := make(chan time.Time, 1), make(chan error, 1)
	p1.keys.answer = func(ctx context.Context, _ raft.ServerID, _ []byte) ([]byte, error) {
		end, _ := ctx.Deadline()
		asked <- end
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	called := make(chan error, 1)
	go func() {
		_, err := p2.Call(ctx, "s1", nil)
		called <- err
	}()
	if end := <-asked; time.Until(end) > 30*time.Second {
		t.Errorf("the server has until %v to answer", end)
	}
	cancel()
	if err := <-called; !errors.Is(err, context.Canceled) || status.Code(err) != codes.Canceled {
		t.Errorf("canceled: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler goes on")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p2.Call(ctx, "s1", nil); !errors.Is(err, context.DeadlineExceeded) || status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
}

// TestCallFindsAServerThatIsBack at once, and says why it was not reached before.
func TestCallFindsAServerThatIsBack(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p2 := c.port("s2")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	c.set("s1", addr)
	for range 3 {
		if _, err := p2.Call(t.Context(), "s1", nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("a server that is down: %v", err)
		}
	}
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	c.portOn(ln, addr, "s1")
	if got, err := p2.Call(t.Context(), "s1", []byte("hello")); err != nil || string(got) != "s2: hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestConnectionsAreKeptByID: a server that has moved is called where it is, and another server that answers in its place gets
// nothing.
func TestConnectionsAreKeptByID(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2, p3 := c.port("s1"), c.port("s2"), c.port("s3")
	if _, err := p2.Call(t.Context(), "s1", nil); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p2.StreamLayer().Dial(raft.ServerAddress(p1.addr), time.Minute); err != nil {
		t.Fatal(err)
	}
	moved := c.portOn(ln, ln.Addr().String(), "s1")
	c.set("s1", moved.addr)
	p2.keys.change()
	for range 2 { // raft's connection too
		p2.told.wait("it is at " + moved.addr + " now, no longer at " + p1.addr)
	}
	if n := p2.Links(); n != 0 {
		t.Errorf("%d grpc.ClientConns go on", n)
	}
	p1.keys.answer = func(context.Context, raft.ServerID, []byte) ([]byte, error) { return []byte("the old one"), nil }
	if got, err := p2.Call(t.Context(), "s1", []byte("hello")); err != nil || string(got) != "s2: hello" {
		t.Errorf("of a server that has moved: %q, %v", got, err)
	}
	c.set("s1", p3.addr)
	p2.keys.change()
	p2.told.wait("it is at " + p3.addr + " now")
	if got, err := p2.Call(t.Context(), "s1", []byte("hello")); err == nil || !says(err.Error(), `server "s3", want "s1"`) {
		t.Errorf("another server answers: %q, %v", got, err)
	}
}

// TestAddrOf says where a member's grpc.Server is, for raft too, if that is not the address in raft's configuration.
func TestAddrOf(t *testing.T) {
	c := newCluster(t)
	p1 := c.port("s1")
	c.set("s1", "raft.of.s1:7000")
	p2 := c.port("s2", func(cfg *keyringgrpc.Config) {
		cfg.AddrOf = func(s raft.Server) (string, error) {
			if s.Address != "raft.of.s1:7000" {
				return "", errors.New("no such host")
			}
			return p1.addr, nil
		}
	})
	if got, err := p2.Call(t.Context(), "s1", nil); err != nil || string(got) != "s2: " {
		t.Errorf("%q, %v", got, err)
	}
	if out, err := p2.StreamLayer().Dial("raft.of.s1:7000", time.Minute); err != nil {
		t.Error(err)
	} else {
		defer out.Close()
	}
	if _, err := p2.Call(t.Context(), "s2", nil); err == nil || !strings.Contains(err.Error(), "no such host") {
		t.Errorf("%v", err)
	}
	if _, err := p2.StreamLayer().Dial(raft.ServerAddress(p2.addr), time.Minute); err == nil || !strings.Contains(err.Error(), "no such host") {
		t.Errorf("%v", err)
	}
}

// TestRefusesServersThatAreNoMembers in the handshake, for calls and for raft, and says why in the log.
func TestRefusesServersThatAreNoMembers(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	c.set("s2", "nowhere")
	brief := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	noUse := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	for name, tt := range map[string]struct {
		source source
		want   string
	}{
		"not a member":  {c.ca.server("s4"), "not in the raft configuration"},
		"other role":    {c.ca.source("keyring://prod/client/s2"), `role "client", want "server"`},
		"other cluster": {c.ca.source("keyring://test/server/s2"), `cluster "test", want "prod"`},
		"no URI":        {c.ca.source("https://prod/server/s2"), "0 keyring URIs"},
		"ended":         {c.ca.server("s2", brief), "expired"},
		"not a client":  {c.ca.server("s2", noUse), "incompatible key usage"},
		"foreign CA":    {newCA().server("s2"), "unknown authority"},
		"none":          {func() (*tls.Config, error) { return new(tls.Config), nil }, "client didn't provide a certificate"},
	} {
		p1 := c.port("s1", withClients) // each has a log of its own
		for _, protocol := range []string{keyringgrpc.CallProtocol, keyringgrpc.RaftProtocol} {
			conf, err := tt.source()
			must(err)
			conf.NextProtos, conf.InsecureSkipVerify = []string{"h2", protocol}, true
			conn, err := tls.Dial("tcp", p1.addr, conf)
			if err != nil {
				t.Fatal(err)
			}
			if err := closed(t, conn); err == nil {
				t.Errorf("%s: closed without an alert", name)
			}
			conn.Close()
			p1.told.wait(tt.want)
		}
		if open, _ := p1.Connections(); open > 0 {
			t.Errorf("%s: %d connections are taken", name, open)
		}
	}
}

// TestCallSaysThatItWasRefused, though the handshake has ended on this side.
func TestCallSaysThatItWasRefused(t *testing.T) {
	c := newCluster(t)
	c.port("s1")
	all := c.members()
	p2 := c.port("s2")
	c.remove("s2")
	p2.AttachTo(func() []raft.Server { return append(all, raft.Server{ID: "s2"}) })
	for range 10 { // the alert comes after what this side has sent
		if _, err := p2.Call(t.Context(), "s1", nil); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "bad certificate") {
			t.Error(err)
		}
	}
}

func TestPortTakesNothingButTLS(t *testing.T) {
	p1 := newCluster(t).port("s1", withClients)
	plain, err := net.Dial("tcp", p1.addr)
	must(err)
	defer plain.Close()
	plain.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	p1.told.wait("does not look like a TLS handshake")
}
