// Watchmap is a service that had a raft of its own before it had a keyring: an ordered map with watches, on up to any number of
// servers. The leader takes writes, and each server answers reads, and tells the owner of a watch of each write below a prefix.
//
//	watchmap -id s1 -dir DIR -addr HOST:PORT -initial s1@HOST:PORT,...      a server of a new cluster
//	watchmap -id s4 -dir DIR -addr HOST:PORT -join HOST:PORT,... -token FILE      one that joins
//	watchmap -dir DIR keys status      and the other commands of package admin, for the server of a directory
//	watchmap -id s1 -dir DIR -addr HOST:PORT restore -identity FILE -sha256 SUM BACKUP      makes DIR/raft and DIR/keystore
//
// DIR has tls.crt and tls.key, ca.crt, and 32 random bytes in kek. The API is on the unix socket DIR/api.sock: who may open that may
// do everything. A server that has lost its directory starts with -join id@HOST:PORT and without a token, and never with
// -initial: it would vote twice.
//
// # What the keyring takes
//
// Package before is the FSM as it was, and store as it is: diff -u before store shows the difference. The same are serveBefore, in
// before_test.go, and serve, in keyring.go. What operators call is in operate.go. Everything else has not changed: raft.go,
// where raft has its log and how it starts, api.go for users, and main.go. That the keyring takes 60 lines at most is a test, as
// are these: a cluster of before is upgraded, server by server, at the same addresses; its log and snapshots are read, and
// its values encrypted; a cluster grows from one server to five, rotates, loses its leader by SIGKILL while values are encrypted again,
// shrinks to one server, and is restored from a backup.
//
// # A walk-through
//
// Three servers on one machine, which in the field each have a machine, and the CA's key is on none of them:
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
