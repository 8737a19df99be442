package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/node"
	"filippo.io/age"
)

// TestMain is a command itself where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("KEYRING_COMMAND") != "" {
		err := Command(context.Background(), os.Args[1:], CommandOptions{Program: testProgram})
		if err != nil {
			fmt.Fprintln(os.Stderr, "controlplane:", err)
		}
		os.Exit(ExitStatus(err))
	}
	os.Exit(m.Run())
}

// testProgram is as the host of these tests has it.
var testProgram = Program{
	Name: "controlplane", Server: "http://127.0.0.1:8001",
	Start: "controlplane serve$EVERY /tmp/cp $SERVER", StartWithOldKEKs: "controlplane serve -escrow RECIPIENT -identity FILE /tmp/cp $SERVER",
	Recover:  "controlplane recover /tmp/cp ID",
	Keystore: "/tmp/cp/$SERVER/keystore", Raft: "/tmp/cp/$SERVER/raft", KEK: "/tmp/cp/$SERVER.kek",
	Certificate: "/tmp/cp/$SERVER.pem", CA: "/tmp/cp/ca.pem",
}

// anybody lets in who is called tester.
func anybody(*http.Request) (string, error) { return "tester", nil }

// server is a Handler for a Node alone, and its URL.
type server struct {
	*Handler
	node *node.Node
	url  string
}

// alone starts one. Change, if not nil, is called before.
func alone(t *testing.T, change func(*Config, *node.Config)) server {
	t.Helper()
	cfg := Config{Authorize: anybody, Program: testProgram}
	conf := node.Config{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Data: keyring.NoData{}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	if change != nil {
		change(&cfg, &conf)
	}
	n, err := node.Start(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, err := New(n, cfg)
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewServer(h)
	t.Cleanup(api.Close)
	return server{h, n, api.URL}
}

// do sends a request, and returns the status and the body.
func (s server) do(t *testing.T, method, path, body string, change ...func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// client returns a Client of a server.
func clientOf(t *testing.T, url string) *Client {
	t.Helper()
	c, err := NewClient(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newIdentity(t *testing.T) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// runCommand runs a command, against a server if there is a URL, and returns all that it prints.
func runCommand(t *testing.T, url string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	if url != "" {
		args = append([]string{"-server", url}, args...)
	}
	err := Command(t.Context(), args, CommandOptions{Program: testProgram, Stdout: &out, Stderr: &out})
	return out.String(), err
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var names []string
	files, err := os.ReadDir(dir)
	for _, f := range files {
		names = append(names, f.Name())
	}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%q in %s, %v, want %q", names, dir, err, want)
	}
}

// isUsage reports whether an error is one of wrong usage.
func isUsage(err error) bool { return errors.As(err, new(usage)) }

// counter counts records.
type counter func() int

func (c counter) Count(context.Context, keyring.KeyID) (int, error) { return c(), nil }
