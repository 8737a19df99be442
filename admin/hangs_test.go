package admin

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// listening is an address that takes connections and answers nothing, as that of a process that was stopped does.
func listening(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

// refusing is an address at which nobody listens.
func refusing(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	return ln.Addr().String()
}

// A command that asks a server that hangs ends, and says that it hangs; of one that is down it says something else.
func TestStatusOfAServerThatHangsEnds(t *testing.T) {
	t.Parallel()
	says := "accepts connections but has not answered within 5s"
	_, err := runCommand(t, "http://"+listening(t), "keys", "status")
	if err == nil || !strings.Contains(err.Error(), says) || ExitStatus(err) != 1 {
		t.Errorf("%v", err)
	}
	_, err = runCommand(t, "http://"+refusing(t), "keys", "status")
	if err == nil || strings.Contains(err.Error(), says) {
		t.Errorf("of one that is down: %v", err)
	}
	if statusTime < 2*peerTime {
		t.Errorf("%v is too short for a server that waits %v for the others", statusTime, peerTime)
	}
}

// A server that hangs is told apart from one that is down: the first must be ended before it is started, and that is what the
// commands do.
func TestHungServerIsToldApartFromADeadOne(t *testing.T) {
	h := &Handler{id: "s1", peers: http.DefaultClient}
	urls := map[raft.ServerID]string{"s2": "http://" + listening(t), "s3": "http://" + refusing(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	all := three()
	for _, id := range []raft.ServerID{"s3", "s2"} { // the second takes all the time that there is
		all[id] = h.ask(ctx, id, urls[id])
	}
	if a := all["s2"]; a.Error != "it accepts connections, but has not answered within 1s" {
		t.Errorf("%q", a.Error)
	}
	v := overviewOf(testSite, testNow, all)
	var got []string
	for _, c := range v.Problems {
		got = append(got, string(c.Kind)+" "+list(c.Servers)+": "+strings.Join(c.Commands, "; "))
	}
	want := "hangs s2: fuser -v 8002/tcp; fuser -k -KILL 8002/tcp; controlplane serve /tmp/cp s2\nno usable answer s3: controlplane serve /tmp/cp s3"
	if strings.Join(got, "\n") != want {
		t.Errorf("%q, want %q", got, want)
	}
}
