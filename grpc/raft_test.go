package keyringgrpc_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/raft"
)

// TestRaftReadsNothingOfARemovedServer, on either end, before its connection is closed.
func TestRaftReadsNothingOfARemovedServer(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	out, err := p2.StreamLayer().Dial("nowhere:1", time.Minute)
	if err == nil || !strings.Contains(err.Error(), "not in the raft configuration") {
		t.Errorf("dial of an address of nobody: %v, %v", out, err)
	}
	if out, err = p2.StreamLayer().Dial(c.members()[0].Address, time.Minute); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := p1.StreamLayer().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b := make([]byte, 8)
	for from, to := range map[net.Conn]net.Conn{out: in, in: out} {
		io.WriteString(from, "one")
		if n, err := to.Read(b); string(b[:n]) != "one" || err != nil {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
	if addr := p1.StreamLayer().Addr(); addr.String() != p1.addr {
		t.Errorf("raft's address is %s, want %s", addr, p1.addr)
	}
	c.remove("s2")
	io.WriteString(out, "two")
	if n, err := in.Read(b); n > 0 || err == nil || !strings.Contains(err.Error(), "not in the raft configuration") {
		t.Errorf("of a removed server: %q, %v", b[:n], err)
	}
	c.set("s2", p2.addr)
	c.remove("s1")
	io.WriteString(in, "three")
	if n, err := out.Read(b); n > 0 || err == nil {
		t.Errorf("the answer of a removed server: %q, %v", b[:n], err)
	}
}

// TestRaftDialsNoOtherServer: the address has to be that of the server which answers.
func TestRaftDialsNoOtherServer(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p2, p3 := c.port("s2"), c.port("s3")
	c.remove("s3")
	c.set("s1", p3.addr)
	_, err := p2.StreamLayer().Dial(c.members()[1].Address, time.Minute)
	if err == nil || !says(err.Error(), `server "s3", want "s1"`) {
		t.Error(err)
	}
}

// TestServerThatIsToBeAddedHearsTheOthers: it has no configuration yet.
func TestServerThatIsToBeAddedHearsTheOthers(t *testing.T) {
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	p1.AttachTo(newCluster(t).members)
	if out, err := p2.StreamLayer().Dial(c.members()[0].Address, time.Minute); err != nil {
		t.Error(err)
	} else {
		defer out.Close()
	}
	if in, err := p1.StreamLayer().Accept(); err != nil {
		t.Error(err)
	} else {
		defer in.Close()
	}
}

// TestRaftIsClosed: connections come to nothing, and Accept returns.
func TestRaftIsClosed(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1 := c.port("s1")
	c.set("s2", "nowhere")
	p1.StreamLayer().Close()
	if _, err := p1.StreamLayer().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	conf, err := c.ca.server("s2")()
	must(err)
	conf.NextProtos, conf.InsecureSkipVerify = []string{keyringgrpc.RaftProtocol}, true
	conn, err := tls.Dial("tcp", p1.addr, conf)
	must(err)
	defer conn.Close()
	closed(t, conn)
}

// TestCloseEndsHandshakes that are under way, and with them the server's Stop.
func TestCloseEndsHandshakes(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1 := c.port("s1")
	conn, err := net.Dial("tcp", p1.addr)
	must(err)
	defer conn.Close()
	for {
		if _, pending := p1.Connections(); pending > 0 {
			break
		}
		runtime.Gosched()
	}
	p1.Close()
	closed(t, conn)
	p1.Close()
	if conn, err = net.Dial("tcp", p1.addr); err == nil {
		closed(t, conn)
		conn.Close()
	}
}

// TestCloseEndsWhatRaftHasAsked: its shutdown waits for the answers, and for dials, and a server may hang.
func TestCloseEndsWhatRaftHasAsked(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1, p2 := c.port("s1"), c.port("s2")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	defer silent.Close()
	c.set("s3", silent.Addr().String())
	out, err := p2.StreamLayer().Dial(raft.ServerAddress(p1.addr), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() {
		_, err := out.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		_, err := p2.StreamLayer().Dial(raft.ServerAddress(silent.Addr().String()), time.Minute)
		ended <- err
	}()
	begun := time.Now()
	in, err := silent.Accept()
	must(err)
	defer in.Close()
	p2.Close()
	for range 2 {
		if err := <-ended; err == nil || time.Since(begun) > keyringgrpc.Patience {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	}
}

// TestServerThatIsRemovedDuringItsHandshake gets no connection: no change of members would end it.
func TestServerThatIsRemovedDuringItsHandshake(t *testing.T) {
	noLeak(t)
	c := newCluster(t)
	p1 := c.port("s1")
	c.set("s2", "nowhere")
	p1.AttachTo(func() []raft.Server {
		defer c.remove("s2") // after the handshake has asked
		return c.members()
	})
	conf, err := c.ca.server("s2")()
	must(err)
	conf.NextProtos, conf.InsecureSkipVerify = []string{keyringgrpc.RaftProtocol}, true
	conn, err := tls.Dial("tcp", p1.addr, conf)
	must(err)
	defer conn.Close()
	begun := time.Now()
	closed(t, conn)
	if took := time.Since(begun); took >= keyringgrpc.Patience {
		t.Errorf("closed after %v", took)
	}
	p1.told.wait(`server "s2": not in the raft configuration`)
}
