// Watchmap is a service that had a raft of its own before it had a keyring: an ordered map with watches, on
// up to any number of servers. The leader takes writes, and each server answers reads, and tells the owner of
// a watch of each write below a prefix.
//
//	watchmap -id s1 -dir DIR -addr HOST:PORT -initial s1@HOST:PORT,...      a server of a new cluster
//	watchmap -id s4 -dir DIR -addr HOST:PORT -join HOST:PORT,... -token FILE      one that joins
//	watchmap -dir DIR keys status      and the other commands of package admin, for the server of a directory
//	watchmap -id s1 -dir DIR -addr HOST:PORT restore -identity FILE -sha256 SUM BACKUP      makes DIR/raft and DIR/keystore
//
// DIR contains tls.crt and tls.key, ca.crt, and 32 random bytes in kek. The API is on the unix socket
// DIR/api.sock: whoever may open that socket may do everything. A server that has lost its directory starts
// with -join id@HOST:PORT and without a token. Never start it with -initial: it would vote twice.
//
// # What the keyring takes
//
// Package before is the old FSM, and store the new one: diff -u before store shows the difference. The same
// holds for serveBefore, in before_test.go, and serve, in keyring.go. operate.go serves operators. The other
// files have not changed: raft.go, for raft's log and start, api.go, for users, and main.go.
//
// Tests hold that the keyring takes at most 60 lines. They also upgrade a cluster of before, server by
// server, at the same addresses: its log and snapshots are read, and its values encrypted. And they let a
// cluster grow from one server to five, rotate, lose its leader by SIGKILL during a re-encryption, shrink to
// one server, and be restored from a backup.
//
// # A walk-through
//
// Three servers on one machine. In production each has its own machine, and the CA's key is on none of them:
//
//	go build ./examples/watchmap && mkdir /tmp/wm && alias ca='openssl req -x509 -newkey ed25519 -nodes -days 365'
//	ca -keyout /tmp/wm/ca.key -out /tmp/wm/ca.crt -subj /CN=watchmap
//	all=s1@127.0.0.1:7101,s2@127.0.0.1:7102,s3@127.0.0.1:7103
//	for i in 1 2 3; do
//		d=/tmp/wm/s$i; mkdir $d; cp /tmp/wm/ca.crt $d; head -c 32 /dev/urandom >$d/kek; chmod 600 $d/kek
//		ca -CA /tmp/wm/ca.crt -CAkey /tmp/wm/ca.key -keyout $d/tls.key -out $d/tls.crt -subj /CN=s$i \
//			-addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=serverAuth,clientAuth \
//			-addext subjectAltName=URI:keyring://watchmap/server/s$i
//		./watchmap -id s$i -dir $d -addr 127.0.0.1:710$i -initial $all >$d/log 2>&1 &
//	done
//	curl --unix-socket /tmp/wm/s1/api.sock http://watchmap/leader      # "s2", say
//	curl --unix-socket /tmp/wm/s2/api.sock -T - http://watchmap/values/greeting <<<hello
//	curl --unix-socket /tmp/wm/s3/api.sock http://watchmap/values/greeting      # its value is in base64
//	./watchmap -dir /tmp/wm/s2 keys rotate -full
//	./watchmap -dir /tmp/wm/s1 keys status
package main
