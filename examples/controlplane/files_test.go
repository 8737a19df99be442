package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestServerStartsOnFilesAlone: each of those that init has made may have been swapped.
func TestServerStartsOnFilesAlone(t *testing.T) {
	for _, name := range []string{"cluster.json", "s1.kek", "s1.pem", "ca.pem"} {
		dir := filepath.Join(t.TempDir(), "cluster")
		if _, err := runCommand(t, client{}, "init", "-port", "0", dir); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		_, _, err := newServer(dir, "s1", options{})
		if err == nil {
			_, err = tlsOf(dir, "s1")()
		}
		if err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s is a FIFO: %v", name, err)
		}
	}
}

// TestServerNamesAnEmptyTokenFile: without a token the server would ask to join as one that was added.
func TestServerNamesAnEmptyTokenFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	if _, err := runCommand(t, client{}, "init", "-port", "0", dir); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := newServer(dir, "s1", options{token: token}); err == nil || !strings.Contains(err.Error(), token+" is empty") {
		t.Error(err)
	}
}
