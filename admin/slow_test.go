package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// pipes is a listener whose connections hold nothing: what is not read is not written.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.done); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// serving serves a handler in virtual time, on one connection, and returns the client's end of it.
func serving(t *testing.T, h http.Handler) net.Conn {
	t.Helper()
	p := pipes{make(chan net.Conn), make(chan struct{})}
	server := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- server.Serve(p) }()
	ours, theirs := net.Pipe()
	p.conns <- theirs
	t.Cleanup(func() {
		ours.Close()
		server.Close()
		<-done
	})
	return ours
}

// bare is a Handler that no keyring is asked by.
func bare() *Handler {
	h := &Handler{cfg: Config{Authorize: anybody, Logger: hclog.NewNullLogger()}}
	h.routes = orNothing(h.mux())
	return h
}

// endless is a body that never ends, and counts what is taken of it.
type endless struct{ taken int }

func (e *endless) Read(b []byte) (int, error) {
	e.taken += len(b)
	return copy(b, strings.Repeat(" ", len(b))), nil
}

// A body beyond the bound is not read further, whatever its length is said to be.
func TestHugeBodiesAreNotRead(t *testing.T) {
	for _, path := range []string{"/v1/keys", "/v1/servers", "/v1/tokens", "/v1/backup", "/v1/rewrap"} {
		for _, length := range []int64{-1, 1 << 40} {
			body := &endless{}
			w := ask(bare(), "POST", path, body, func(r *http.Request) { r.ContentLength = length })
			if wantError(t, path, w, http.StatusRequestEntityTooLarge); body.taken > 2*maxBody {
				t.Errorf("%s: %d bytes were read", path, body.taken)
			}
		}
	}
}

// A client that does not send its body is told, and its connection ends, in bodyTime.
func TestASlowBodyIsGivenUp(t *testing.T) {
	for _, path := range []string{"/v1/keys", "/v1/backup", "/v1/rewrap"} {
		synctest.Test(t, func(t *testing.T) {
			conn, began := serving(t, bare()), time.Now()
			go fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: s1\r\nContent-Length: 10\r\n\r\n{", path)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != http.StatusBadRequest || time.Since(began) != bodyTime {
				t.Fatalf("%s: %v, %v, after %v", path, resp, err, time.Since(began))
			}
			if _, err := io.Copy(io.Discard, conn); err != nil || time.Since(began) > 2*bodyTime {
				t.Errorf("%s: the connection ends after %v, %v", path, time.Since(began), err)
			}
		})
	}
}

// A client that does not take its answer loses its connection in answerTime. A backup may take as long as some of it is taken.
func TestAnAnswerThatIsNotTakenIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Duration, 1)
		began := time.Now()
		h := bare()
		conn := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			ended <- time.Since(began)
		}))
		fmt.Fprintf(conn, "GET /page.js HTTP/1.1\r\nHost: s1\r\n\r\n")
		if took := <-ended; took != answerTime {
			t.Errorf("after %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		part := []byte(strings.Repeat("x", 64<<10))
		ended := make(chan time.Duration, 1)
		conn := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			out := &patientWriter{w: w, conn: http.NewResponseController(w)}
			for last := time.Now(); ; last = time.Now() {
				if _, err := out.Write(part); err != nil {
					ended <- time.Since(last)
					return
				}
			}
		}))
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: s1\r\n\r\n")
		for range 30 { // ten minutes: each part is taken in time
			time.Sleep(answerTime/2 - time.Second)
			if _, err := io.ReadFull(conn, make([]byte, len(part))); err != nil {
				t.Fatal(err)
			}
		}
		if took := <-ended; took > answerTime {
			t.Errorf("after %v", took)
		}
	})
}

// Neither the deadlines of a request nor those of its answer are left for what comes later.
func TestNoDeadlineIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, ended := bare(), make(chan error, 1)
		conn := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/long": // as the removal of a key
				if err := readBody(w, r); err != nil {
					t.Error(err)
				}
				ctx, cancel := context.WithTimeout(r.Context(), time.Hour)
				defer cancel()
				<-ctx.Done()
				ended <- context.Cause(ctx)
				sendJSON(w, http.StatusOK, "done")
			case "/own": // of the host's
				time.Sleep(time.Hour)
				io.WriteString(w, "own")
			default:
				h.ServeHTTP(w, r)
			}
		}))
		in := bufio.NewReader(conn)
		for _, path := range []string{"/page.css", "/long", "/own", "/page.js"} {
			go fmt.Fprintf(conn, "DELETE %s HTTP/1.1\r\nHost: s1\r\n\r\n", path) // net/http reads on from the beginning
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			time.Sleep(time.Hour)
		}
		if err := <-ended; err != context.DeadlineExceeded {
			t.Errorf("the long request has ended: %v", err)
		}
	})
}
