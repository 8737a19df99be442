package keyringgrpc_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestHandshakesUnderWayAreBounded: those that say nothing keep nobody out, and push out nobody who comes from elsewhere.
func TestHandshakesUnderWayAreBounded(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	slow, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).Dial("tcp", p1.addr)
	if err != nil {
		t.Fatal(err)
	}
	for pending := 0; pending == 0; _, pending = p1.Connections() {
		runtime.Gosched()
	}
	cut := make(chan struct{}, keyringgrpc.MaxPending+10)
	for range keyringgrpc.MaxPending + 10 {
		conn, err := net.Dial("tcp", p1.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			io.Copy(io.Discard, conn)
			cut <- struct{}{}
		}()
	}
	begun := time.Now()
	for range 11 {
		<-cut
	}
	if took := time.Since(begun); took >= keyringgrpc.Patience {
		t.Errorf("they are cut off after %v", took)
	}
	if _, err := p2.Call(t.Context(), "s1", nil); err != nil {
		t.Error(err)
	}
	if _, pending := p1.Connections(); pending > keyringgrpc.MaxPending {
		t.Errorf("%d handshakes are under way", pending)
	}
	conf, err := c.ca.server("s2")()
	must(err)
	conf.NextProtos, conf.InsecureSkipVerify = []string{keyringgrpc.CallProtocol}, true
	late := tls.Client(slow, conf)
	defer late.Close()
	if err := late.Handshake(); err != nil {
		t.Errorf("one from elsewhere, that was there before: %v", err)
	}
}

// TestConnectionsOfOneServerAreBounded, by protocol; the oldest gives way.
func TestConnectionsOfOneServerAreBounded(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1 := c.port("s1")
	c.port("s2")
	c.set("s3", "nowhere")
	if _, err := p1.Call(t.Context(), "s2", nil); err != nil { // what this side makes does not count
		t.Fatal(err)
	}
	connect := func(id string) *tls.Conn {
		conf, err := c.ca.server(id)()
		must(err)
		conf.NextProtos, conf.InsecureSkipVerify = []string{keyringgrpc.CallProtocol}, true
		conn, err := tls.Dial("tcp", p1.addr, conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil { // it is admitted
			t.Fatal(err)
		}
		return conn
	}
	other := connect("s3")
	first := connect("s2")
	for range keyringgrpc.MaxPerServer {
		connect("s2")
	}
	io.Copy(io.Discard, first) // until it is closed
	if open, _ := p1.Connections(); open != keyringgrpc.MaxPerServer+2 {
		t.Errorf("%d connections", open)
	}
	if _, err := other.Write([]byte("\x00\x00\x00\x04\x01\x00\x00\x00\x00")); err != nil {
		t.Errorf("that of another server: %v", err)
	}
}

// TestHeadersAreBounded: 8 KiB.
func TestHeadersAreBounded(t *testing.T) {
	c := newCluster(t)
	c.port("s1")
	ctx := metadata.AppendToOutgoingContext(t.Context(), "long", strings.Repeat("x", 9<<10))
	err := healthy(ctx, c.port("s2").Conn("s1"))
	if err == nil || !strings.Contains(err.Error(), "header list size") {
		t.Errorf("a long header: %v", err)
	}
}

// TestCallsOfOneServerAreBounded: more than so many at a time wait.
func TestCallsOfOneServerAreBounded(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2, p3 := c.port("s1"), c.port("s2"), c.port("s3")
	entered, leave := make(chan raft.ServerID, 2*keyringgrpc.MaxCalls), make(chan struct{})
	p1.keys.answer = func(_ context.Context, from raft.ServerID, _ []byte) ([]byte, error) {
		entered <- from
		if from == "s2" {
			<-leave
		}
		return nil, nil
	}
	errs := make(chan error, keyringgrpc.MaxCalls+1)
	for range keyringgrpc.MaxCalls {
		go func() {
			_, err := p2.Call(t.Context(), "s1", nil)
			errs <- err
		}()
		<-entered
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := p2.Call(ctx, "s1", nil) // the server's word may come in the moment of the deadline, or not
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	if len(entered) > 0 {
		t.Error("one more is answered")
	}
	if _, err := p3.Call(t.Context(), "s1", nil); err != nil {
		t.Errorf("of another server: %v", err)
	}
	close(leave)
	for range keyringgrpc.MaxCalls {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if _, err := p2.Call(t.Context(), "s1", nil); err != nil {
		t.Errorf("after them: %v", err)
	}
}

// TestSlowOnesAreCutOff: a handshake that does not come, on either end, and a request.
func TestSlowOnesAreCutOff(t *testing.T) {
	for name, wait := range map[string]func(*testing.T, *virtual){
		"handshake": func(t *testing.T, v *virtual) {
			conn, err := v.dial(t.Context(), "", "s1")
			must(err)
			closed(t, conn)
			v.ports["s1"].told.wait("rejected a connection")
		},
		"handshake of a server": func(t *testing.T, v *virtual) {
			v.listeners["s3"] = bufconn.Listen(1)
			v.set("s3", "s3:1")
			go v.listeners["s3"].Accept()
			if _, err := v.ports["s1"].StreamLayer().Dial("s3:1", time.Hour); err == nil {
				t.Error("a server that says nothing")
			}
		},
		"request": func(t *testing.T, v *virtual) {
			desc := &grpc.StreamDesc{ClientStreams: true}
			stream, err := v.ports["s2"].Conn("s1").NewStream(t.Context(), desc, method)
			must(err)
			if err := stream.RecvMsg(new(wrapperspb.BytesValue)); status.Code(err) != codes.Unavailable {
				t.Errorf("a request that does not come: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVirtual(t, "s1", "s2")
				begun := time.Now()
				wait(t, v)
				if took := time.Since(begun); took < keyringgrpc.Patience || took > keyringgrpc.Patience+2*time.Second {
					t.Errorf("after %v", took)
				}
			})
		})
	}
}

// TestRefusalsAreNotAFloodOfLines, and have no bodies.
func TestRefusalsAreNotAFloodOfLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(t, "s1", "s2")
		p := v.ports["s1"]
		p.keys.answer = func(context.Context, raft.ServerID, []byte) ([]byte, error) { return []byte("body"), io.ErrNoProgress }
		for range 100 {
			if _, err := v.ports["s2"].Call(t.Context(), "s1", []byte("body")); err == nil {
				t.Error("an answer")
			}
		}
		if len(p.told) != keyringgrpc.MaxLines {
			t.Errorf("%d lines", len(p.told))
		}
		time.Sleep(time.Second) // virtual
		v.ports["s2"].Call(t.Context(), "s1", []byte("body"))
		p.told.wait("unlogged=90")
		for len(p.told) > 0 {
			if line := <-p.told; strings.Contains(line, "body") {
				t.Errorf("a line with a body: %s", line)
			}
		}
	})
}
