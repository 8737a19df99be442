package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

// service is a Server of the server "b" on a port, and a Client of "a".
type service struct {
	*peer.Client
	dialer *peer.Dialer
	port   *peer.Port
	server *peer.Server
	addr   string
	dials  atomic.Int32
	errs   chan error
}

func (s *service) Close() {
	s.Client.Close()
	s.server.Close()
	s.port.Close()
}

func (s *service) call(t *testing.T, body string) (string, error) {
	t.Helper()
	b, err := s.Call(t.Context(), "b", s.addr, "/v1/test", []byte(body))
	return string(b), err
}

func serve(t *testing.T, a *ca, ln net.Listener, dial func(context.Context, string, string) (net.Conn, error), h peer.Handler) *service {
	s := &service{addr: ln.Addr().String(), errs: make(chan error, 10)}
	s.port = peer.Listen(ln, peer.PortOptions{TLS: serverConfig(t, a.source("b"), everybody)})
	s.server = peer.Serve(s.port.Listener(peer.ALPNPeer), h, peer.ServerOptions{
		OnError: func(_ peer.Identity, _ string, err error) { s.errs <- err },
	})
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	s.dialer = &peer.Dialer{
		Cluster: cluster, TLS: a.source("a"),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			s.dials.Add(1)
			return dial(ctx, network, addr)
		},
	}
	s.Client = peer.NewClient(s.dialer)
	return s
}

// onSockets runs f with a service on loopback.
func onSockets(t *testing.T, h peer.Handler, f func(*service)) {
	t.Helper()
	noLeak(t)
	s := serve(t, newCA(t), loopback(t), nil, h)
	defer s.Close()
	f(s)
}

// inBubble runs f with a service on pipes, under synctest's clock. Goroutines that are left
// after f and Close fail the test.
func inBubble(t *testing.T, h peer.Handler, f func(t *testing.T, s *service)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		s := serve(t, newCA(t), ln, ln.DialContext, h)
		f(t, s)
		s.Close()
	})
}

func echo(_ context.Context, from peer.Identity, path string, body []byte) ([]byte, error) {
	return fmt.Appendf(nil, "%s %s %s", from, path, body), nil
}

func TestCallsShareAConnection(t *testing.T) {
	onSockets(t, echo, func(s *service) {
		for i := range 10 {
			got, err := s.call(t, fmt.Sprint(i))
			if want := fmt.Sprintf("keyring://prod-1/server/a /v1/test %d", i); got != want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
		if n := s.dials.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

func TestLargestMessagesPass(t *testing.T) {
	same := func(_ context.Context, _ peer.Identity, _ string, body []byte) ([]byte, error) { return body, nil }
	onSockets(t, same, func(s *service) {
		for _, n := range []int{0, 1, peer.MaxMessage} {
			if got, err := s.call(t, strings.Repeat("x", n)); len(got) != n || err != nil {
				t.Errorf("%d bytes: %d come back, %v", n, len(got), err)
			}
		}
		if _, err := s.call(t, strings.Repeat("x", peer.MaxMessage+1)); err == nil {
			t.Error("a request that is too large")
		}
	})
}

func TestErrorsOfTheHandler(t *testing.T) {
	results := make(chan func() ([]byte, error), 1)
	h := func(context.Context, peer.Identity, string, []byte) ([]byte, error) { return (<-results)() }
	onSockets(t, h, func(s *service) {
		for _, want := range []*peer.Refusal{{Code: peer.NotReady}, {Code: peer.NotLeader, Leader: "c"}} {
			results <- func() ([]byte, error) { return []byte("lost"), fmt.Errorf("wrapped: %w", want) }
			var got *peer.Refusal
			if b, err := s.call(t, ""); !errors.As(err, &got) || *got != *want || b != "" {
				t.Errorf("%q, %v, want %v", b, err, want)
			}
		}
		for want, result := range map[string]func() ([]byte, error){
			"secret detail": func() ([]byte, error) { return []byte("lost"), errors.New("secret detail") },
			"1048577 bytes": func() ([]byte, error) { return make([]byte, peer.MaxMessage+1), nil },
			"unknown error": func() ([]byte, error) { return nil, &peer.Refusal{Code: "tired"} },
		} {
			results <- result
			b, err := s.call(t, "")
			if err == nil || !strings.HasSuffix(err.Error(), "HTTP status 500") || b != "" {
				t.Errorf("%q, %v, want status 500", b, err)
			}
			if err := <-s.errs; !strings.Contains(err.Error(), want) {
				t.Errorf("OnError is told %v, want %q", err, want)
			}
		}
		if n := s.dials.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
		results <- func() ([]byte, error) { panic("at the disco") }
		if _, err := s.call(t, ""); err == nil {
			t.Error("a panic is no error")
		}
		if err := <-s.errs; !strings.Contains(err.Error(), "at the disco") {
			t.Errorf("OnError is told %v", err)
		}
	})
}

const rawCall = "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\n\r\nx"

func TestErrorDetailStaysHere(t *testing.T) {
	h := func(context.Context, peer.Identity, string, []byte) ([]byte, error) {
		return nil, errors.New("secret detail")
	}
	onSockets(t, h, func(s *service) {
		c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, rawCall)
		c.CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil || !bytes.Contains(b, []byte("internal error")) || bytes.Contains(b, []byte("secret")) {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// speaks is an HTTP server on a port that says what it likes.
func speaks(t *testing.T, a *ca, h http.HandlerFunc) (*peer.Port, *http.Server) {
	p := peer.Listen(loopback(t), peer.PortOptions{TLS: serverConfig(t, a.source("b"), everybody)})
	s := &http.Server{Handler: h}
	go s.Serve(p.Listener(peer.ALPNPeer))
	return p, s
}

func TestResponsesOfAnOddServer(t *testing.T) {
	a := newCA(t)
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"too large":   {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, peer.MaxMessage+1)) }, "more than 1048576 bytes"},
		"endless":     {func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, zeros{}) }, "more than 1048576 bytes"},
		"long header": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, "exceeded"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "HTTP status 307"},
		"other refusal": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "peer message: malformed"},
		"hold, refused": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"version":1,"hold":{}}`)
		}, "HTTP status 403"},
		"cut short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
		}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			p, s := speaks(t, a, tt.handler)
			c := peer.NewClient(&peer.Dialer{Cluster: cluster, TLS: a.source("a")})
			b, err := c.Call(t.Context(), "b", p.Addr().String(), "/v1/test", nil)
			if b != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d bytes, %v, want %q", len(b), err, tt.want)
			}
			c.Close()
			s.Close()
			p.Close()
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestServerRefusesOddRequests(t *testing.T) {
	var called atomic.Bool
	h := func(context.Context, peer.Identity, string, []byte) ([]byte, error) {
		called.Store(true)
		return nil, nil
	}
	onSockets(t, h, func(s *service) {
		for name, request := range map[string]string{
			"GET":         "GET /v1/test HTTP/1.1\r\nHost: b\r\n\r\n",
			"too large":   "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: 1048577\r\n\r\n" + strings.Repeat("x", 1<<20+1),
			"long header": "POST /v1/test HTTP/1.1\r\nHost: b\r\nX: " + strings.Repeat("x", 1<<16) + "\r\n\r\n",
			"odd timeout": "POST /v1/test HTTP/1.1\r\nHost: b\r\nKeyring-Timeout: -1\r\nContent-Length: 0\r\n\r\n",
			"not HTTP":    "\x00\x01\x02\r\n\r\n",
			"HTTP/2":      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		} {
			c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
			if err != nil {
				t.Fatal(err)
			}
			go func() { io.WriteString(c, request); c.CloseWrite() }()
			b := make([]byte, 12)
			if n, err := io.ReadFull(c, b); err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 4") {
				t.Errorf("%s: %q", name, b[:n])
			}
			c.Close()
		}
	})
	if called.Load() {
		t.Error("the handler was called")
	}
}

// Connections belong to a server ID, and not to an address.
func TestCallNeverReusesAnothersConnection(t *testing.T) {
	noLeak(t)
	a := newCA(t)
	s := serve(t, a, loopback(t), nil, echo)
	defer s.Close()
	if _, err := s.call(t, ""); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"c", "B", "b.a", "b\x00"} {
		_, err := s.Call(t.Context(), other, s.addr, "/v1/test", nil)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`server "b", want %q`, other)) {
			t.Errorf("call %q: %v", other, err)
		}
	}

	// Any server will do, but not over the connection to this one.
	if got, err := s.Call(t.Context(), "", s.addr, "/v1/test", []byte("x")); err != nil || !bytes.HasSuffix(got, []byte(" x")) {
		t.Errorf("call any server: %q, %v", got, err)
	}
	if n := s.dials.Load(); n != 6 {
		t.Errorf("%d dials", n)
	}

	// The same server, elsewhere.
	moved := serve(t, a, loopback(t), nil, func(context.Context, peer.Identity, string, []byte) ([]byte, error) {
		return []byte("moved"), nil
	})
	defer moved.Close()
	if b, err := s.Call(t.Context(), "b", moved.addr, "/v1/test", nil); string(b) != "moved" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if got, err := s.call(t, "x"); !strings.HasSuffix(got, " x") || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func hang(ctx context.Context, _ peer.Identity, _ string, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestHungPeerCostsOneDeadline(t *testing.T) {
	inBubble(t, hang, func(t *testing.T, s *service) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, err := s.Call(ctx, "b", s.addr, "/v1/test", nil)
		if took := time.Since(start); took != 5*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestDeadlineIsCarried: a handler waits no longer than its caller, also if the network has taken the
// caller away without a word.
func TestDeadlineIsCarried(t *testing.T) {
	left := make(chan time.Duration, 1)
	h := func(ctx context.Context, _ peer.Identity, _ string, _ []byte) ([]byte, error) {
		end, ok := ctx.Deadline()
		if !ok {
			end = time.Now()
		}
		left <- time.Until(end)
		return nil, nil
	}
	inBubble(t, h, func(t *testing.T, s *service) {
		for _, timeout := range []time.Duration{5 * time.Second, 1000 * time.Hour} {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			if _, err := s.Call(ctx, "b", s.addr, "/v1/test", nil); err != nil {
				t.Fatal(err)
			}
			if got := <-left; got != min(timeout, 24*time.Hour) {
				t.Errorf("of %v it has %v", timeout, got)
			}
		}
		if _, err := s.call(t, "x"); err != nil {
			t.Fatal(err)
		}
		if got := <-left; got != 0 {
			t.Errorf("without a deadline it has %v", got)
		}
	})
}

func TestHandlerTakesItsTime(t *testing.T) {
	slow := func(ctx context.Context, _ peer.Identity, _ string, _ []byte) ([]byte, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Hour):
			return []byte("done"), nil
		}
	}
	inBubble(t, slow, func(t *testing.T, s *service) {
		for range 2 {
			if got, err := s.call(t, "x"); got != "done" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		}
	})
}

func TestSlowRequestsAreCutOff(t *testing.T) {
	for name, request := range map[string]string{
		"nothing": "", "half a header": "POST /v1/test HTT",
		"half a body": "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\nhalf",
	} {
		inBubble(t, echo, func(t *testing.T, s *service) {
			c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			io.WriteString(c, request)
			b, _ := io.ReadAll(c)
			if took := time.Since(start); took < 30*time.Second || took > 40*time.Second || bytes.HasPrefix(b, []byte("HTTP/1.1 200")) {
				t.Errorf("%s: %q after %v", name, b, took)
			}
			c.Close()
		})
	}
}

// What is answered without a call of the handler is no exception.
func TestSlowReadersAreCutOff(t *testing.T) {
	for name, request := range map[string]string{
		"answer":        "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\nbody",
		"not a call":    "GET /v1/test HTTP/1.1\r\nHost: b\r\n\r\n",
		"half a body":   "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\nhalf",
		"asks to go on": "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
	} {
		inBubble(t, echo, func(t *testing.T, s *service) {
			c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			io.WriteString(c, request)
			c.SetWriteDeadline(start.Add(time.Hour))
			for err == nil {
				_, err = io.WriteString(c, " ") // until the other side is gone
			}
			if took := time.Since(start); took > 70*time.Second {
				t.Errorf("%s: cut off after %v", name, took)
			}
			c.Close()
		})
	}
}

// posted is a call whose body of 1 MiB is sent in all but its last byte, as far as it is taken.
type posted struct {
	net.Conn
	taken atomic.Int64
	rest  chan bool // the last byte is to come, if true
	reply chan string
}

func (s *service) post(t *testing.T) *posted {
	t.Helper()
	c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
	if err != nil {
		t.Fatal(err)
	}
	p := &posted{Conn: c, rest: make(chan bool, 1), reply: make(chan string, 1)}
	go func() {
		defer c.Close()
		fmt.Fprintf(c, "POST /v1/test HTTP/1.1\r\nHost: b\r\nContent-Length: %d\r\n\r\n", peer.MaxMessage)
		block := make([]byte, 4<<10)
		for i := range peer.MaxMessage / len(block) {
			if i == peer.MaxMessage/len(block)-1 {
				block = block[1:]
			}
			if _, err := c.Write(block); err != nil {
				return
			}
			p.taken.Add(int64(len(block)))
		}
		if <-p.rest {
			c.Write(block[:1])
			status := make([]byte, 12)
			io.ReadFull(c, status)
			p.reply <- string(status)
		}
	}()
	synctest.Wait()
	return p
}

// as is a client of another server.
func (s *service) as(a *ca, id string) *peer.Client {
	return peer.NewClient(&peer.Dialer{Cluster: cluster, TLS: a.source(id), DialContext: s.dialer.DialContext})
}

// A thief of one server's certificate, with many connections, has the others hold little.
func TestLongBodiesTakeTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln, a := newPipes(), newCA(t)
		s := serve(t, a, ln, ln.DialContext, echo)
		var all []*posted
		for range 20 {
			all = append(all, s.post(t))
		}
		for i, p := range all {
			if n := p.taken.Load(); i < 4 && n != peer.MaxMessage-1 || i >= 4 && n > 96<<10 {
				t.Errorf("%d: %d bytes are taken", i, n)
			}
		}
		began := time.Now()
		other := s.as(a, "c")
		for name, c := range map[string]func() ([]byte, error){
			"short, of the same server": func() ([]byte, error) {
				return s.Call(t.Context(), "b", s.addr, "/v1/test", make([]byte, 60<<10))
			},
			"long, of another": func() ([]byte, error) {
				return other.Call(t.Context(), "b", s.addr, "/v1/test", make([]byte, peer.MaxMessage-100))
			},
		} {
			if _, err := c(); err != nil || time.Since(began) != 0 {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
		}
		all[2].rest <- true
		synctest.Wait()
		if n := all[4].taken.Load(); n != peer.MaxMessage-1 {
			t.Errorf("when another has come: %d bytes are taken", n)
		}
		for _, p := range all {
			close(p.rest)
		}
		other.Close()
		s.Close()
	})
}

// Waiting costs a caller nothing of the time that its body may take.
func TestLongBodiesWaitForTheirTurn(t *testing.T) {
	inBubble(t, echoLength, func(t *testing.T, s *service) {
		var all []*posted
		for range 8 {
			all = append(all, s.post(t))
		}
		time.Sleep(30 * time.Second) // the first four are cut off
		synctest.Wait()
		if n := all[7].taken.Load(); n != peer.MaxMessage-1 {
			t.Errorf("after 30 seconds %d bytes are taken", n)
		}
		time.Sleep(29 * time.Second)
		all[7].rest <- true
		if got := <-all[7].reply; got != "HTTP/1.1 200" {
			t.Errorf("29 seconds later: %q", got)
		}
		for _, p := range all {
			close(p.rest)
		}
	})
}

// A call that waits for too long is refused, and one whose caller no longer waits gives up its place.
func TestLongBodiesAreRefusedIfThereAreTooMany(t *testing.T) {
	inBubble(t, echoLength, func(t *testing.T, s *service) {
		var all []*posted
		for range 3 {
			for range 4 {
				all = append(all, s.post(t)) // these have their turns in the first, second and third half minute
			}
			time.Sleep(time.Second)
		}
		for _, c := range []struct {
			timeout, after time.Duration
			want           string
		}{
			{5 * time.Second, 5 * time.Second, ""}, // both sides end it at the same time
			{time.Hour, time.Minute, "HTTP status 503"},
			{time.Hour, 22 * time.Second, "<nil>"},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
			began := time.Now()
			_, err := s.Call(ctx, "b", s.addr, "/v1/test", make([]byte, 1<<20))
			if took := time.Since(began); !strings.HasSuffix(fmt.Sprint(err), c.want) || took != c.after {
				t.Errorf("%v after %v, want %q after %v", err, took, c.want, c.after)
			}
			cancel()
		}
		for _, p := range all {
			close(p.rest)
		}
	})
}

func TestManyLongCallsAtOnceSucceed(t *testing.T) {
	inBubble(t, echoLength, func(t *testing.T, s *service) {
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				if got, err := s.call(t, strings.Repeat("x", peer.MaxMessage)); got != fmt.Sprint(peer.MaxMessage) || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		wg.Wait()
	})
}

// A port closes the oldest of many handshakes from one address.
func TestClientDialsAFewAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		c := peer.NewClient(&peer.Dialer{Cluster: cluster, TLS: newCA(t).source("a"), DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr == "b" {
				dials.Add(1)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		var wg sync.WaitGroup
		call := func(addr string) {
			wg.Go(func() {
				if _, err := c.Call(t.Context(), addr, addr, "/v1/test", nil); err == nil {
					t.Error("who is silent answers")
				}
			})
			synctest.Wait()
		}
		call("c")
		for range 20 {
			call("b")
		}
		if n := dials.Load(); n != 8 {
			t.Errorf("%d dials at a time", n)
		}
		wg.Wait()
		c.Close()
	})
}

func echoLength(_ context.Context, _ peer.Identity, _ string, body []byte) ([]byte, error) {
	return fmt.Append(nil, len(body)), nil
}

// Closing ends what is under way on both sides, and the bubble shows that nothing is left.
func TestCloseEndsCallsUnderWay(t *testing.T) {
	for name, first := range map[string]func(*service){
		"client first": func(s *service) { s.Client.Close() },
		"server first": func(s *service) { s.server.Close() },
		"port first":   func(s *service) { s.port.Close() },
	} {
		inBubble(t, hang, func(t *testing.T, s *service) {
			errs := make(chan error, 3)
			for range cap(errs) {
				go func() {
					_, err := s.Call(t.Context(), "b", s.addr, "/v1/test", []byte("x"))
					errs <- err
				}()
			}
			idle, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			first(s)
			for range cap(errs) {
				if err := <-errs; err == nil {
					t.Errorf("%s: a call succeeds", name)
				}
			}
			s.Close()
			ended(t, idle)
			if _, err := s.call(t, ""); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: call after Close: %v", name, err)
			}
		})
	}
}

// The connection's end does not reach a handler behind a pipelined request: Close does.
func TestServerCloseEndsHandlers(t *testing.T) {
	inBubble(t, hang, func(t *testing.T, s *service) {
		c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, rawCall)
		synctest.Wait()
		io.WriteString(c, "P")
		synctest.Wait()
		s.server.Close()
	})
}

// late accepts one connection while it is being closed.
type late struct {
	*pipes
	conn chan net.Conn
}

func (l *late) Accept() (net.Conn, error) {
	<-l.done
	select {
	case c := <-l.conn:
		return c, nil
	default:
		return nil, net.ErrClosed
	}
}

func TestServerClosesTheConnectionThatComesLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		ln := &late{newPipes(), make(chan net.Conn, 1)}
		ln.conn <- there
		s := peer.Serve(ln, echo, peer.ServerOptions{})
		synctest.Wait()
		start := time.Now()
		s.Close()
		ended(t, here)
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

// What is not a verified connection has no identity, and gets no answer.
func TestServerWantsAnIdentity(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		s := peer.Serve(ln, echo, peer.ServerOptions{})
		c, err := ln.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(c, rawCall)
		b := make([]byte, 12)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 400" {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
		s.Close()
	})
}

func TestClientCloseClosesIdleConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		var raw net.Conn
		s := serve(t, newCA(t), ln, func(ctx context.Context, network, addr string) (_ net.Conn, err error) {
			raw, err = ln.DialContext(ctx, network, addr)
			return raw, err
		}, echo)
		if _, err := s.call(t, "x"); err != nil {
			t.Fatal(err)
		}
		if err := raw.SetDeadline(time.Time{}); err != nil {
			t.Errorf("after the call: %v", err)
		}
		s.Client.Close()
		synctest.Wait()
		if err := raw.SetDeadline(time.Time{}); err == nil {
			t.Error("open after Close")
		}
		s.Close()
	})
}

func TestCloseDuringADial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ln := newPipes()
		go ln.Accept() // and says nothing
		c := peer.NewClient(&peer.Dialer{Cluster: cluster, TLS: newCA(t).source("a"), DialContext: ln.DialContext})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		// The call is over before its dial.
		if _, err := c.Call(ctx, "b", "pipe", "/v1/test", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		start := time.Now()
		c.Close()
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v", took)
		}
	})
}

func TestServerClosesOnSockets(t *testing.T) {
	noLeak(t)
	s := serve(t, newCA(t), loopback(t), nil, echo)
	for range 20 {
		if _, err := s.call(t, "x"); err != nil {
			t.Fatal(err)
		}
		c, err := s.dialer.Dial(t.Context(), "b", s.addr, peer.ALPNPeer)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	s.server.Close()
	s.port.Close()
	s.Client.Close()
	if err := s.server.Close(); err != nil {
		t.Error(err)
	}
	s.Client.Close()
}
